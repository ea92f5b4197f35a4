"""Pictures of any origin into a TFDS data set in ArrayRecord format."""
