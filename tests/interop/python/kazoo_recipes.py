"""kazoo, ZooKeeper's client for Python, against a running coordinator: nodes, watches, recipes, ACLs."""

import sys
import threading
import time
import uuid

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from kazoo.security import make_digest_acl

TIMEOUT = 30
hosts = sys.argv[1]
root = "/kazoo-" + uuid.uuid4().hex[:12]


def client(**options):
    found = KazooClient(hosts=hosts, timeout=10, **options)
    found.start(timeout=TIMEOUT)
    return found


def refused(error, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error:
        return
    raise AssertionError(f"{call} was not refused with {error}")


def nodes(zk):
    zk.create(root + "/a/b", b"one", makepath=True)
    data, stat = zk.get(root + "/a/b")
    assert (data, stat.version, stat.dataLength) == (b"one", 0, 3), (data, stat)
    assert zk.set(root + "/a/b", b"two", version=0).version == 1
    refused(BadVersionError, zk.set, root + "/a/b", b"", version=0)
    refused(NodeExistsError, zk.create, root + "/a/b")
    refused(NoNodeError, zk.create, root + "/x/y")
    refused(NotEmptyError, zk.delete, root + "/a")
    assert zk.exists(root + "/none") is None
    path, stat = zk.create(root + "/a/c", b"c", include_data=True)
    assert (path, stat.version) == (root + "/a/c", 0)
    assert sorted(zk.get_children(root + "/a")) == ["b", "c"]
    names, stat = zk.get_children(root + "/a", include_data=True)
    assert (len(names), stat.numChildren) == (2, 2)
    zk.delete(root + "/a", recursive=True)
    assert zk.exists(root + "/a") is None
    assert zk.sync(root) == root
    first = zk.create(root + "/n-", sequence=True)
    second = zk.create(root + "/n-", sequence=True)
    assert int(second[-10:]) == int(first[-10:]) + 1


def ephemerals_and_watches(zk, other):
    seen, gone, listed = [], threading.Event(), threading.Event()

    def watch(event):
        seen.append(event.type)
        gone.set()

    other.create(root + "/e", b"", ephemeral=True)
    assert zk.exists(root + "/e", watch=watch).ephemeralOwner == other.client_id[0]

    @zk.ChildrenWatch(root)
    def children(names):
        if "listed" in names:
            listed.set()
            return False
        return True

    values, changed = [], threading.Event()
    zk.create(root + "/d", b"0")

    @zk.DataWatch(root + "/d")
    def data(value, stat):
        values.append(value)
        if value == b"1":
            changed.set()

    other.set(root + "/d", b"1")
    other.create(root + "/listed")
    assert changed.wait(TIMEOUT) and listed.wait(TIMEOUT)
    assert values[0] == b"0" and values[-1] == b"1", values
    other.stop()
    assert gone.wait(TIMEOUT) and seen == ["DELETED"], seen
    assert zk.exists(root + "/e") is None
    other.start(timeout=TIMEOUT)


def recipes(zk, other):
    order = []

    def second():
        with other.Lock(root + "/lock", "second"):
            order.append("second")

    with zk.Lock(root + "/lock", "first"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + TIMEOUT
        while len(zk.Lock(root + "/lock").contenders()) < 2:
            assert time.monotonic() < deadline, "the second contender doesn't queue"
        order.append("first")
    thread.join(TIMEOUT)
    assert order == ["first", "second"], order

    leading = threading.Event()
    election = zk.Election(root + "/election", "zk")
    runner = threading.Thread(target=election.run, args=(leading.set,))
    runner.start()
    assert leading.wait(TIMEOUT)
    runner.join(TIMEOUT)

    queue = zk.Queue(root + "/queue")
    for value in (b"1", b"2", b"3"):
        queue.put(value)
    assert [queue.get() for _ in range(3)] == [b"1", b"2", b"3"]

    counter = zk.Counter(root + "/counter")
    for _ in range(5):
        counter += 1
    assert counter.value == 5

    barrier = zk.Barrier(root + "/barrier")
    barrier.create()
    threading.Timer(0, other.Barrier(root + "/barrier").remove).start()
    assert barrier.wait(TIMEOUT)


def transactions(zk):
    zk.create(root + "/t", b"")
    good = zk.transaction()
    good.check(root + "/t", version=0)
    good.create(root + "/t/x", b"x")
    good.set_data(root + "/t/x", b"y")
    good.delete(root + "/t/x")
    results = good.commit()
    assert results[0] is True and results[1] == root + "/t/x" and results[3] is True, results
    assert results[2].version == 1
    bad = zk.transaction()
    bad.create(root + "/t/never")
    bad.check(root + "/t", version=9)
    bad.delete(root + "/t")
    results = bad.commit()
    assert isinstance(results[0], RolledBackError) and isinstance(results[1], BadVersionError), results
    assert zk.exists(root + "/t/never") is None


def access(zk):
    acl = make_digest_acl("me", "secret", all=True)
    zk.create(root + "/mine", b"x", acl=[acl])
    refused(NoAuthError, zk.get, root + "/mine")
    owner = client(auth_data=[("digest", "me:secret")])
    assert owner.get(root + "/mine")[0] == b"x"
    assert owner.get_acls(root + "/mine")[0][0].id.scheme == "digest"
    zk.add_auth("digest", "me:secret")
    assert zk.get(root + "/mine")[0] == b"x"
    owner.stop()
    owner.close()


def words(zk):
    assert zk.server_version()[:2] >= (3, 5), zk.server_version()
    assert zk.command(b"ruok") == "imok"
    assert "Mode: " in zk.command(b"srvr")


zk, other = client(), client()
nodes(zk)
ephemerals_and_watches(zk, other)
recipes(zk, other)
transactions(zk)
access(zk)
words(zk)
zk.delete(root, recursive=True)
for each in (zk, other):
    each.stop()
    each.close()
print("kazoo: ok")
