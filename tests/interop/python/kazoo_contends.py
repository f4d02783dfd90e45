"""kazoo beside Loggos' own locks: says what it could take. Arguments: hosts, then pairs of a recipe and a path."""

import sys

from kazoo.client import KazooClient
from kazoo.exceptions import LockTimeout

zk = KazooClient(hosts=sys.argv[1], timeout=10)
zk.start(timeout=30)
for recipe, path in zip(sys.argv[2::2], sys.argv[3::2]):
    lock = {
        "Lock": lambda: zk.Lock(path, "kazoo"),
        # kazoo's plain lock doesn't see readers.
        "WriteLock": lambda: zk.WriteLock(path, "kazoo"),
        "ReadLock": lambda: zk.ReadLock(path, "kazoo"),
        "Semaphore": lambda: zk.Semaphore(path, "kazoo", max_leases=2),
    }[recipe]()
    try:
        lock.acquire(timeout=2)
        print("taken", recipe, path)
        if recipe != "Semaphore":
            print("contenders", *lock.contenders())
        lock.release()
    except LockTimeout:
        print("busy", recipe, path)
zk.stop()
zk.close()
