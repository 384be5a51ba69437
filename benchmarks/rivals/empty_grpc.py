"""grpc.aio with an empty handler: what a Python server over grpcio can do at most.

Takes any method, reads nothing, and answers the same prepared bytes.
"""

import argparse
import asyncio
from pathlib import Path

import grpc
import uvloop


class Empty(grpc.GenericRpcHandler):
    """One handler for every method."""

    def __init__(self, answer: bytes) -> None:
        async def give(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
            return answer

        self._handler = grpc.unary_unary_rpc_method_handler(give)

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handler


async def serve(port: int, answer: bytes) -> None:
    """Serves until killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Empty(answer),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serve on a port until killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer", type=Path, required=True, help="file of the bytes to answer")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.port, args.answer.read_bytes()))


if __name__ == "__main__":
    main()
