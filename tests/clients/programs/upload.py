"""Uploads zeros with one of Python's HTTP libraries, then asks again on the same connection.

upload.py http.client|urllib|requests length|chunked SIZE URL
"""

import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request

CHUNK = bytes(65536)


def zeros(size):
    for _ in range(size // len(CHUNK)):
        yield CHUNK


class Zeros:
    """A file of zeros, with a length for the libraries that ask for it."""

    def __init__(self, size):
        self.left = size

    def __len__(self):
        return self.left

    def read(self, most=65536):
        most = min(most, self.left, len(CHUNK))
        self.left -= most
        return CHUNK[:most]


def with_http_client(url, framing, size):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    if framing == "length":
        headers = {"Content-Length": str(size)}
        connection.request("PUT", "/a", body=zeros(size), headers=headers)
    else:
        connection.request("PUT", "/a", body=zeros(size), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})
    answer = connection.getresponse()
    yield answer.status, answer.read()
    connection.request("GET", "/")
    answer = connection.getresponse()
    yield answer.status, answer.read()


def with_urllib(url, framing, size):
    request = urllib.request.Request(url + "/a", data=zeros(size), method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    if framing == "length":
        request.add_header("Content-Length", str(size))
    for request in [request, url + "/"]:
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        yield answer.status, answer.read()


def with_requests(url, framing, size):
    import requests

    session = requests.Session()
    data = Zeros(size) if framing == "length" else zeros(size)
    answer = session.put(url + "/a", data=data)
    yield answer.status_code, answer.content
    answer = session.get(url + "/")
    yield answer.status_code, answer.content


library, framing, size, url = sys.argv[1:]
upload = {"http.client": with_http_client, "urllib": with_urllib, "requests": with_requests}
for status, body in upload[library](url, framing, int(size)):
    print(status, body.decode(), flush=True)
