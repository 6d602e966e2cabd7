"""Uploads files to the tus example with tuspy.

upload_tus.py [FLAGS] URL FILE...

Prints a line of JSON for each file, in their order: where it is, how far it is, and what it was refused with.
"""

import argparse
import asyncio
import json
import os

from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

# Ignore a proxy that the environment may configure.
os.environ["NO_PROXY"] = "*"


def upload(options, file):
    client = TusClient(options.url, headers=dict(options.header))
    make = client.async_uploader if options.asynchronous else client.uploader
    said = {"url": None, "offset": 0, "status": None, "content": None}
    uploader = None
    try:
        # Asks for the offset, if the upload is resumed.
        uploader = make(
            file,
            url=options.resume,
            chunk_size=options.chunk,
            metadata=dict(options.metadata),
            retries=options.retries,
            retry_delay=0.1,
        )
        said["resumed_at"] = uploader.offset
        running = uploader.upload(stop_at=options.stop_at)
        if options.asynchronous:
            asyncio.run(running)
    except TusCommunicationError as error:
        content = error.response_content
        said["status"] = error.status_code
        said["content"] = content.decode() if isinstance(content, bytes) else content
    if uploader is not None:
        said["url"], said["offset"] = uploader.url, uploader.offset
    return said


def pair(text):
    return text.split("=", 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--header", type=pair, action="append", default=[])
    parser.add_argument("--metadata", type=pair, action="append", default=[])
    # The size of a request.
    parser.add_argument("--chunk", type=int, default=64 << 20)
    # The offset at which to stop.
    parser.add_argument("--stop-at", type=int)
    # The URL of an upload to resume.
    parser.add_argument("--resume")
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--asynchronous", action="store_true")
    parser.add_argument("url")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    for file in options.files:
        print(json.dumps(upload(options, file)), flush=True)


if __name__ == "__main__":
    main()
