"""kazoo, ZooKeeper's client for Python, against a running coordinator: nodes, watches, recipes, ACLs."""

import sys
import threading
import time
import uuid

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    LockTimeout,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from kazoo.recipe.cache import TreeCache, TreeEvent
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


def shared_locks(zk, other):
    readers = [each.ReadLock(root + "/rw") for each in (zk, other)]
    for reader in readers:
        assert reader.acquire(timeout=TIMEOUT)
    writer = other.WriteLock(root + "/rw")
    refused(LockTimeout, writer.acquire, timeout=0.2)
    for reader in readers:
        reader.release()
    assert writer.acquire(timeout=TIMEOUT)
    assert not zk.ReadLock(root + "/rw").acquire(blocking=False)
    writer.release()

    places = [each.Semaphore(root + "/semaphore", max_leases=2) for each in (zk, other)]
    for place in places:
        assert place.acquire(timeout=TIMEOUT)
    refused(LockTimeout, other.Semaphore(root + "/semaphore", max_leases=2).acquire, timeout=0.2)
    places[0].release()
    third = other.Semaphore(root + "/semaphore", max_leases=2)
    assert third.acquire(timeout=TIMEOUT)
    third.release()
    places[1].release()


def together(zk, other):
    inside = []

    def enter(client, name):
        barrier = client.DoubleBarrier(root + "/double", 2)
        barrier.enter()
        inside.append(name)
        barrier.leave()

    threads = [threading.Thread(target=enter, args=pair) for pair in ((zk, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(inside) == ["a", "b"], inside

    party = zk.Party(root + "/party", "first")
    party.join()
    second = other.Party(root + "/party", "second")
    second.join()
    assert sorted(party) == ["first", "second"]
    second.leave()
    assert sorted(party) == ["first"]
    party.leave()
    shallow = zk.ShallowParty(root + "/shallow", "third")
    shallow.join()
    assert list(shallow) == ["third"]
    shallow.leave()

    queue = zk.LockingQueue(root + "/locking")
    queue.put_all([b"a", b"b"])
    assert queue.get(TIMEOUT) == b"a" and queue.consume()
    assert other.LockingQueue(root + "/locking").get(TIMEOUT) == b"b"

    shares = {}

    def divide(client, name):
        found = client.SetPartitioner(root + "/shares", set=range(6), identifier=name, time_boundary=1)
        deadline = time.monotonic() + 2 * TIMEOUT
        while time.monotonic() < deadline:
            if found.release:
                found.release_set()
            elif found.failed:
                break
            elif found.acquired and len(found._party) == 2:
                shares[name] = set(found)
                if len(shares) == 2:
                    break
                time.sleep(0.05)
            else:
                found.wait_for_acquire(0.2)
        finished.wait(2 * TIMEOUT)
        found.finish()

    finished = threading.Barrier(2)
    threads = [threading.Thread(target=divide, args=pair) for pair in ((zk, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * TIMEOUT)
    assert shares["a"] | shares["b"] == set(range(6)) and not shares["a"] & shares["b"], shares


def caches(zk, other):
    events, ready = [], threading.Event()
    cache = TreeCache(zk, root + "/tree")

    def listen(event):
        events.append((event.event_type, event.event_data.path if event.event_data else None))
        if event.event_type == TreeEvent.INITIALIZED:
            ready.set()

    cache.listen(listen)
    cache.start()
    assert ready.wait(TIMEOUT)
    other.create(root + "/tree/x/y", b"1", makepath=True)
    eventually(lambda: (TreeEvent.NODE_ADDED, root + "/tree/x/y") in events)
    other.set(root + "/tree/x/y", b"2")
    eventually(lambda: (TreeEvent.NODE_UPDATED, root + "/tree/x/y") in events)
    assert cache.get_data(root + "/tree/x/y").data == b"2"
    other.delete(root + "/tree/x/y")
    eventually(lambda: (TreeEvent.NODE_REMOVED, root + "/tree/x/y") in events)
    assert cache.get_children(root + "/tree/x") == set()
    cache.close()


def eventually(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


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
shared_locks(zk, other)
together(zk, other)
caches(zk, other)
transactions(zk)
access(zk)
words(zk)
zk.delete(root, recursive=True)
for each in (zk, other):
    each.stop()
    each.close()
print("kazoo: ok")
