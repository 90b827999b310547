"""Where training clips come from: folders with a CSV, webdataset shards."""
