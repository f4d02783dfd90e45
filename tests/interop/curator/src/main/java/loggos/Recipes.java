package loggos;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.CuratorCacheListener;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.framework.recipes.shared.SharedCount;
import org.apache.curator.retry.RetryOneTime;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.data.Stat;

/** Apache Curator's framework and recipes against a running coordinator; the last line says that all went well. */
public final class Recipes {
  private static final Duration PATIENCE = Duration.ofSeconds(60);
  private static final String ROOT = "/curator-" + UUID.randomUUID();

  private static CuratorFramework connect(String servers) throws Exception {
    CuratorFramework client = CuratorFrameworkFactory.newClient(servers, 20_000, 20_000, new RetryOneTime(100));
    client.start();
    check(client.blockUntilConnected(60, TimeUnit.SECONDS), "connected");
    return client;
  }

  public static void main(String[] arguments) throws Exception {
    try (CuratorFramework one = connect(arguments[0]); CuratorFramework two = connect(arguments[0])) {
      nodes(one);
      transactions(one);
      cache(one, two);
      mutex(one, two);
      readWriteLock(one, two);
      semaphore(one, two);
      latch(one, two);
      counts(one, two);
      barrier(one, two);
      persistent(one, two);
      timeToLive(one);
      one.delete().deletingChildrenIfNeeded().forPath(ROOT);
    }
    System.out.println("curator: ok");
  }

  private static void nodes(CuratorFramework client) throws Exception {
    String path = ROOT + "/nodes/a";
    Stat stat = new Stat();
    client.create().storingStatIn(stat).creatingParentContainersIfNeeded().forPath(path, bytes("1"));
    check(stat.getVersion() == 0 && stat.getDataLength() == 1, "a stat with the creation");
    check(client.checkExists().forPath(ROOT + "/nodes").getNumChildren() == 1, "a container with a child");
    client.setData().withVersion(0).forPath(path, bytes("22"));
    try {
      client.setData().withVersion(0).forPath(path, bytes("333"));
      throw new AssertionError("an old version was accepted");
    } catch (KeeperException.BadVersionException expected) {
      check("22".equals(new String(client.getData().storingStatIn(stat).forPath(path))), "data as it was set");
    }
    String numbered = client.create().withProtection().withMode(CreateMode.EPHEMERAL_SEQUENTIAL)
        .forPath(ROOT + "/nodes/n-", null);
    check(numbered.endsWith("n-0000000001"), numbered);
    check(client.getData().forPath(numbered) == null, "null data stays null");
    check(client.getACL().forPath(path).size() == 1, "an open ACL");
    client.delete().guaranteed().forPath(numbered);
    client.delete().deletingChildrenIfNeeded().forPath(ROOT + "/nodes");
    check(client.checkExists().forPath(ROOT + "/nodes") == null, "gone");
  }

  private static void transactions(CuratorFramework client) throws Exception {
    String path = ROOT + "/transaction";
    List<CuratorTransactionResult> results = client.transaction().forOperations(
        client.transactionOp().create().forPath(path, bytes("a")),
        client.transactionOp().setData().withVersion(0).forPath(path, bytes("b")),
        client.transactionOp().create().withMode(CreateMode.EPHEMERAL).forPath(path + "/child"),
        client.transactionOp().check().withVersion(1).forPath(path),
        client.transactionOp().delete().forPath(path + "/child"));
    check(results.size() == 5 && results.get(1).getResultStat().getVersion() == 1, "each part's result");
    try {
      client.transaction().forOperations(
          client.transactionOp().create().forPath(path + "/never"),
          client.transactionOp().check().withVersion(7).forPath(path));
      throw new AssertionError("a failing part left the others standing");
    } catch (KeeperException.BadVersionException expected) {
      check(client.checkExists().forPath(path + "/never") == null, "nothing of it happened");
    }
  }

  private static void cache(CuratorFramework one, CuratorFramework two) throws Exception {
    String path = ROOT + "/cache";
    one.create().forPath(path, bytes("0"));
    Set<String> seen = ConcurrentHashMap.newKeySet();
    try (CuratorCache cache = CuratorCache.build(two, path)) {
      cache.listenable().addListener(CuratorCacheListener.builder()
          .forCreates(node -> seen.add("created " + node.getPath()))
          .forChanges((before, after) -> seen.add("changed " + after.getPath() + " " + new String(after.getData())))
          .forDeletes(node -> seen.add("deleted " + node.getPath()))
          .build());
      cache.start();
      eventually("the cache's root", () -> seen.contains("created " + path));
      one.create().creatingParentsIfNeeded().forPath(path + "/x/y", bytes("1"));
      eventually("a grandchild", () -> seen.contains("created " + path + "/x/y"));
      one.setData().forPath(path + "/x/y", bytes("2"));
      eventually("its change", () -> seen.contains("changed " + path + "/x/y 2"));
      one.delete().forPath(path + "/x/y");
      eventually("its end", () -> seen.contains("deleted " + path + "/x/y"));
      check(cache.get(path + "/x").isPresent() && cache.size() == 2, "what is left");
    }
  }

  private static void mutex(CuratorFramework one, CuratorFramework two) throws Exception {
    String path = ROOT + "/mutex";
    AtomicInteger inside = new AtomicInteger();
    AtomicInteger rounds = new AtomicInteger();
    ExecutorService threads = Executors.newFixedThreadPool(4);
    List<Future<?>> all = new ArrayList<>();
    for (CuratorFramework client : List.of(one, two, one, two)) {
      all.add(threads.submit(() -> {
        InterProcessMutex mutex = new InterProcessMutex(client, path);
        for (int round = 0; round < 10; round++) {
          check(mutex.acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS), "the mutex");
          check(inside.incrementAndGet() == 1, "alone inside");
          rounds.incrementAndGet();
          inside.decrementAndGet();
          mutex.release();
        }
        return null;
      }));
    }
    for (Future<?> each : all) {
      each.get(PATIENCE.toSeconds() * 4, TimeUnit.SECONDS);
    }
    threads.shutdown();
    check(rounds.get() == 40, "forty rounds");
  }

  private static void readWriteLock(CuratorFramework one, CuratorFramework two) throws Exception {
    InterProcessReadWriteLock mine = new InterProcessReadWriteLock(one, ROOT + "/rw");
    InterProcessReadWriteLock theirs = new InterProcessReadWriteLock(two, ROOT + "/rw");
    mine.readLock().acquire();
    check(theirs.readLock().acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS), "two readers");
    theirs.readLock().release();
    check(!theirs.writeLock().acquire(200, TimeUnit.MILLISECONDS), "no writer beside a reader");
    mine.readLock().release();
    check(theirs.writeLock().acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS), "a writer alone");
    theirs.writeLock().release();
  }

  private static void semaphore(CuratorFramework one, CuratorFramework two) throws Exception {
    InterProcessSemaphoreV2 mine = new InterProcessSemaphoreV2(one, ROOT + "/semaphore", 2);
    InterProcessSemaphoreV2 theirs = new InterProcessSemaphoreV2(two, ROOT + "/semaphore", 2);
    var first = mine.acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS);
    var second = theirs.acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS);
    check(first != null && second != null, "two leases");
    check(theirs.acquire(200, TimeUnit.MILLISECONDS) == null, "no third");
    mine.returnLease(first);
    var third = theirs.acquire(PATIENCE.toSeconds(), TimeUnit.SECONDS);
    check(third != null, "a third in the first's place");
    theirs.returnLease(second);
    theirs.returnLease(third);
  }

  private static void latch(CuratorFramework one, CuratorFramework two) throws Exception {
    LeaderLatch first = new LeaderLatch(one, ROOT + "/latch", "one");
    LeaderLatch second = new LeaderLatch(two, ROOT + "/latch", "two");
    first.start();
    check(first.await(PATIENCE.toSeconds(), TimeUnit.SECONDS), "the first leads");
    second.start();
    eventually("both take part", () -> participants(second) == 2);
    check(!second.hasLeadership() && "one".equals(second.getLeader().getId()), "the second follows");
    first.close();
    check(second.await(PATIENCE.toSeconds(), TimeUnit.SECONDS), "the second leads");
    second.close();
  }

  private static int participants(LeaderLatch latch) {
    try {
      return latch.getParticipants().size();
    } catch (Exception absent) {
      return 0;
    }
  }

  private static void counts(CuratorFramework one, CuratorFramework two) throws Exception {
    try (SharedCount mine = new SharedCount(one, ROOT + "/count", 3);
         SharedCount theirs = new SharedCount(two, ROOT + "/count", 3)) {
      mine.start();
      theirs.start();
      check(mine.trySetCount(mine.getVersionedValue(), 4), "the version that it has");
      eventually("the other's view", () -> theirs.getCount() == 4);
      var old = theirs.getVersionedValue();
      check(mine.trySetCount(mine.getVersionedValue(), 5), "again");
      check(!theirs.trySetCount(old, 9), "an old version");
      eventually("what was refused shows the new value", () -> theirs.getCount() == 5);
    }
    DistributedAtomicLong mine = new DistributedAtomicLong(one, ROOT + "/long", new RetryOneTime(10));
    for (int number = 1; number <= 5; number++) {
      check(mine.increment().postValue() == number, "counts");
    }
  }

  private static void barrier(CuratorFramework one, CuratorFramework two) throws Exception {
    CountDownLatch both = new CountDownLatch(2);
    List<Throwable> failures = Collections.synchronizedList(new ArrayList<>());
    for (CuratorFramework client : List.of(one, two)) {
      new Thread(() -> {
        try {
          DistributedDoubleBarrier barrier = new DistributedDoubleBarrier(client, ROOT + "/barrier", 2);
          check(barrier.enter(PATIENCE.toSeconds(), TimeUnit.SECONDS), "in together");
          check(barrier.leave(PATIENCE.toSeconds(), TimeUnit.SECONDS), "out together");
        } catch (Throwable failure) {
          failures.add(failure);
        } finally {
          both.countDown();
        }
      }).start();
    }
    check(both.await(PATIENCE.toSeconds() * 2, TimeUnit.SECONDS) && failures.isEmpty(), "the barrier: " + failures);
  }

  private static void persistent(CuratorFramework one, CuratorFramework two) throws Exception {
    String path = ROOT + "/persistent";
    try (PersistentNode node = new PersistentNode(one, CreateMode.EPHEMERAL, false, path, bytes("here"))) {
      node.start();
      check(node.waitForInitialCreate(PATIENCE.toSeconds(), TimeUnit.SECONDS), "made");
      two.delete().forPath(path);
      eventually("made again", () -> exists(two, path));
    }
    eventually("gone with its owner", () -> !exists(two, path));
  }

  private static void timeToLive(CuratorFramework client) throws Exception {
    String short_ = ROOT + "/ttl";
    client.create().withTtl(1).creatingParentsIfNeeded().withMode(CreateMode.PERSISTENT_WITH_TTL).forPath(short_);
    eventually("past its time", () -> !exists(client, short_));
    try (PersistentTtlNode node = new PersistentTtlNode(client, ROOT + "/kept", 60_000, bytes("x"))) {
      node.start();
      check(node.waitForInitialCreate(PATIENCE.toSeconds(), TimeUnit.SECONDS), "made");
    }
    String container = ROOT + "/container";
    client.create().withMode(CreateMode.CONTAINER).forPath(container);
    client.create().forPath(container + "/child");
    client.delete().forPath(container + "/child");
    eventually("an empty container goes", () -> !exists(client, container));
  }

  private static boolean exists(CuratorFramework client, String path) {
    try {
      return client.checkExists().forPath(path) != null;
    } catch (Exception failure) {
      throw new IllegalStateException(failure);
    }
  }

  private static void eventually(String what, BooleanSupplier condition) throws InterruptedException {
    long deadline = System.nanoTime() + PATIENCE.toNanos();
    while (!condition.getAsBoolean()) {
      check(System.nanoTime() < deadline, "not in time: " + what);
      Thread.sleep(10);
    }
  }

  private static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
  }

  private static byte[] bytes(String text) {
    return text.getBytes(java.nio.charset.StandardCharsets.UTF_8);
  }
}
