"""The trained parts of LivePhoto; see adapter.py."""
