"""The bytes of a client: gRPC channels and HTTP."""
