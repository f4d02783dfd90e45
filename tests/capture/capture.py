"""Captures golden bytes: a proxy between a real client and a real server that keeps the frames of both directions.

capture.py kafka|zookeeper LISTEN_PORT SERVER_PORT OUT_DIR

Each kind of frame is kept once: Kafka's by API key and version, ZooKeeper's by operation. Made the files in
protocol/tests/golden; see protocol/tests/golden/README.md.
"""

import os
import socket
import struct
import sys
import threading

kind, listen, server, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.makedirs(out, exist_ok=True)
lock = threading.Lock()
LIMIT = 20_000


def keep(name, frame):
    path = os.path.join(out, name + ".bin")
    with lock:
        if not os.path.exists(path) and len(frame) <= LIMIT:
            with open(path, "wb") as file:
                file.write(frame)


def frames(source, sink, seen):
    buffer = b""
    while True:
        try:
            got = source.recv(65536)
        except OSError:
            got = b""
        if not got:
            sink.close()
            return
        sink.sendall(got)
        buffer += got
        while len(buffer) >= 4:
            (length,) = struct.unpack(">i", buffer[:4])
            if len(buffer) < 4 + length:
                break
            seen(buffer[4 : 4 + length])
            buffer = buffer[4 + length :]


def serve(client):
    upstream = socket.create_connection(("127.0.0.1", server))
    asked, first = {}, [True, True]

    def request(frame):
        if kind == "kafka":
            key, version, correlation = struct.unpack(">hhi", frame[:8])
            asked[correlation] = (key, version)
            keep(f"kafka-{key:02}-v{version:02}-request", frame)
        elif first[0]:
            first[0] = False
            keep("zookeeper-connect-request", frame)
        else:
            xid, op = struct.unpack(">ii", frame[:8])
            asked[xid] = op
            keep(f"zookeeper-op{op}-request", frame)

    def response(frame):
        if kind == "kafka":
            (correlation,) = struct.unpack(">i", frame[:4])
            if correlation in asked:
                key, version = asked[correlation]
                keep(f"kafka-{key:02}-v{version:02}-response", frame)
        elif first[1]:
            first[1] = False
            keep("zookeeper-connect-response", frame)
        else:
            (xid, _, error) = struct.unpack(">iqi", frame[:16])
            if xid == -1:
                keep("zookeeper-notification", frame)
            elif xid in asked:
                tail = "response" if error == 0 else "error"
                keep(f"zookeeper-op{asked[xid]}-{tail}", frame)

    threading.Thread(target=frames, args=(client, upstream, request), daemon=True).start()
    threading.Thread(target=frames, args=(upstream, client, response), daemon=True).start()


listener = socket.create_server(("127.0.0.1", listen))
while True:
    serve(listener.accept()[0])
