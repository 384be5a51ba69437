"""The gRPC face of the API."""
