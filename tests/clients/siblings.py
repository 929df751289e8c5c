"""Two streams of one gRPC connection to etcd: the watch is cut, the others live on.

Usage: siblings.py ADDRESS TOKEN; waits for a line on standard input before it looks for the end of the watch.
"""

import sys

import grpc

address, token = sys.argv[1:]
metadata = [("authorization", f"Bearer {token}")]
plain = lambda data: data

channel = grpc.insecure_channel(address)
range_ = channel.unary_unary("/etcdserverpb.KV/Range", request_serializer=plain, response_deserializer=plain)
watch = channel.stream_stream("/etcdserverpb.Watch/Watch", request_serializer=plain, response_deserializer=plain)

# WatchRequest { create_request { key: "a" } } and RangeRequest { key: "a" }
create, read = b"\x0a\x03\x0a\x01a", b"\x0a\x01a"

import threading

done = threading.Event()


def requests():
    yield create
    done.wait()


stream = watch(requests(), metadata=metadata)
next(stream)
range_(read, metadata=metadata, timeout=20)
print("begun", flush=True)
sys.stdin.readline()
try:
    for _ in stream:
        pass
    print("the watch ended without a status")
except grpc.RpcError as error:
    print(error.code().name, error.details())
range_(read, metadata=metadata, timeout=20)
print("the sibling lives", flush=True)
done.set()
