"""Calls the gRPC example with grpcio, and decodes the answers with grpcio-status.

upload_grpc.py ADDRESS DESCRIPTORS put|put-small|get|delete|parts|cancel ...

DESCRIPTORS is upload.proto, compiled. Prints a line of JSON for each call, in their order.
"""

import argparse
import itertools
import json
import pathlib
import random
import sys
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
# Importing it registers its message types.
from google.rpc import error_details_pb2  # noqa: F401
from grpc_status import rpc_status

CHUNK = 64 << 10

# A call without an answer by then fails with DEADLINE_EXCEEDED, which no test expects.
LATE = 30

OPTIONS = [
    # Otherwise channels to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Ignore a proxy that the environment may configure.
    ("grpc.enable_http_proxy", 0),
]


class Messages:
    """The messages of upload.proto."""

    def __init__(self, descriptors):
        pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
            pool.AddSerializedFile(file.SerializeToString())
        self.service = pool.FindServiceByName("upload.v1.Uploads")
        for method in self.service.methods:
            for message in [method.input_type, method.output_type]:
                setattr(self, message.name, message_factory.GetMessageClass(message))


class Uploads:
    """What grpcio-tools would generate of the service: a callable for each of its methods."""

    def __init__(self, messages, address):
        self.channel = grpc.insecure_channel(address, OPTIONS)
        for method in messages.service.methods:
            directions = [method.client_streaming, method.server_streaming]
            kind = "_".join("stream" if streams else "unary" for streams in directions)
            call = getattr(self.channel, kind)(
                f"/{messages.service.full_name}/{method.name}",
                request_serializer=getattr(messages, method.input_type.name).SerializeToString,
                response_deserializer=getattr(messages, method.output_type.name).FromString,
            )
            setattr(self, method.name, call)


class Put:
    """An upload in pieces, which begins at once."""

    def __init__(self, options, uploads, name, file, *, until=None, ends=True, late=LATE):
        self.options, self.name, self.file = options, name, file
        # The offset at which to stop, in bytes, and whether that ends the stream.
        self.until, self.ends = until, ends
        self.sent = 0
        self.has_stopped, self.has_answer = threading.Event(), threading.Event()
        self.began = time.monotonic()
        self.call = uploads.Put.future(self.parts(), late, options.metadata)
        self.call.add_done_callback(lambda _: self.answered())

    def answered(self):
        self.seconds = time.monotonic() - self.began
        self.has_answer.set()

    def parts(self):
        if self.options.patient:
            # grpcio would send as much as it may before the answer arrives.
            self.has_answer.wait(LATE)
        if self.has_answer.is_set():
            return
        yield self.options.messages.PutRequest(name=self.name)
        with open(self.file, "rb") as file:
            while self.until is None or self.sent < self.until:
                most = CHUNK if self.until is None else min(CHUNK, self.until - self.sent)
                chunk = file.read(most)
                if not chunk:
                    break
                yield self.options.messages.PutRequest(chunk=chunk)
                # grpcio asks for the next message once this one is sent.
                self.sent += len(chunk)
                if self.sent == self.options.hold:
                    sys.stdin.readline()
        self.has_stopped.set()
        if not self.ends:
            self.has_answer.wait(LATE)

    def outcome(self):
        self.has_answer.wait()
        milliseconds = int(self.seconds * 1000)
        return outcome(self.call, name=self.name, sent=self.sent, until=self.until, milliseconds=milliseconds)


def outcome(call, **said):
    """The result of a call, as its client sees it."""
    code = call.code()
    # A refusal may arrive just when a call is cancelled. Then its details are present, but not its code.
    has_details = code not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
    details = rpc_status.from_call(call) if has_details else None
    said["code"], said["number"], said["message"] = code.name, code.value[0], call.details()
    # Each with its type in addition to its fields.
    said["details"] = []
    if details is not None:
        details = json_format.MessageToDict(details, preserving_proto_field_name=True)
        said["details"] = details["details"]
    if code is grpc.StatusCode.OK and isinstance(call, grpc.Future):
        said["stored"] = getattr(call.result(), "stored", None)
    return said


def put(options):
    channels = itertools.cycle(options.connect() for _ in range(options.channels))
    files = options.files * options.times
    puts = (Put(options, uploads, options.name or file.name, file) for file, uploads in zip(files, channels))
    if options.at_once:
        puts = list(puts)
    for put in puts:
        yield put.outcome()


def put_small(options):
    uploads = options.connect()
    for file in options.files:
        name = options.name or file.name
        request = options.messages.PutSmallRequest(name=name, data=file.read_bytes())
        yield outcome(uploads.PutSmall.future(request, LATE, options.metadata), name=name)


def get(options):
    uploads = options.connect()
    for name in options.names:
        call = uploads.Get(options.messages.GetRequest(name=name), LATE, options.metadata)
        try:
            content = b"".join(reply.chunk for reply in call)
            (options.folder / name).write_bytes(content)
        except grpc.RpcError:
            # It is in the call's code.
            pass
        yield outcome(call, name=name)


def delete(options):
    uploads = options.connect()
    for name in options.names:
        request = options.messages.GetRequest(name=name)
        yield outcome(uploads.Delete.future(request, LATE, options.metadata), name=name)


def parts(options):
    """Any messages: a `name=…`, a `chunk=…`, or nothing."""
    stream = []
    for part in options.parts:
        field, _, value = part.partition("=")
        value = value.encode() if field == "chunk" else value
        stream.append(options.messages.PutRequest(**({field: value} if field else {})))
    uploads = options.connect()
    yield outcome(uploads.Put.future(iter(stream), LATE, options.metadata))


def cancel(options):
    """Begins uploads, several at a time, and cancels each at a random point."""
    # The same in each run: only the progress of the server differs.
    dice = random.Random(1)
    size = options.file.stat().st_size
    uploads = options.connect()
    plans = []
    for number in range(options.count):
        # After its name, after its last byte, and in between.
        until = dice.choice([0, size, dice.randint(1, size), dice.randint(1, size)])
        # Or earlier: an upload that waits for room does not reach that point.
        patience = dice.choice([0, 0.1, 0.1, 0.1])
        # After most have ended, even on a busy machine; while they are processed; at once.
        pause = dice.choice([0.2, 0.02, 0]) * dice.random()
        plans.append((f"{number:03}", until, patience, pause))

    def one(plan):
        name, until, patience, pause = plan
        if options.by_deadline:
            put = Put(options, uploads, name, options.file, until=until, ends=options.ends, late=pause + 0.001)
        else:
            put = Put(options, uploads, name, options.file, until=until, ends=options.ends)
            put.has_stopped.wait(patience)
            time.sleep(pause)
            put.call.cancel()
        return put.outcome()

    with futures.ThreadPoolExecutor(options.at_once) as pool:
        yield from pool.map(one, plans)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("descriptors", type=pathlib.Path)
    parser.add_argument("--token")
    parser.set_defaults(hint=None, patient=False, hold=None)
    commands = parser.add_subparsers(required=True)

    def command(run, name, *arguments):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        for argument, settings in arguments:
            sub.add_argument(argument, **settings)

    path, flag = {"type": pathlib.Path}, {"action": "store_true"}
    number, several = {"type": int, "default": 1}, {"nargs": "+"}
    files, name = ("files", path | several), ("--name", {})
    # The length that is announced to the server.
    hint = ("--hint", {})
    command(put, "put", files, name, hint, ("--times", number), ("--channels", number), ("--at-once", flag),
            # Waits for an answer before it sends anything.
            ("--patient", flag),
            # Waits for a line on stdin after this many bytes, in whole chunks, were sent.
            ("--hold", {"type": int}))
    command(put_small, "put-small", files, name, hint)
    command(get, "get", ("folder", path), ("names", several))
    command(delete, "delete", ("names", several))
    command(parts, "parts", ("parts", {"nargs": "*"}))
    command(cancel, "cancel", ("file", path), ("--count", number), ("--at-once", number), ("--ends", flag),
            ("--by-deadline", flag))

    options = parser.parse_args()
    options.messages = Messages(options.descriptors.read_bytes())
    options.connect = lambda: Uploads(options.messages, options.address)
    options.metadata = []
    if options.token is not None:
        options.metadata.append(("authorization", f"Bearer {options.token}"))
    if options.hint is not None:
        options.metadata.append(("x-upload-length", options.hint))
    for said in options.run(options):
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
