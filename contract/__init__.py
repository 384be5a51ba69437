"""What the exporter promises, the server keeps and the clients rely on.

Imports numpy and msgspec; protobuf and grpcio only inside `contract.wire`, a TFLite
interpreter only inside `contract.lite`. Never TensorFlow.
"""
