"""The demo model: a tiny LivePhoto, its procedural clips and how it is trained."""
