"""What a user touches: the Python client, the command line and the exporters."""
