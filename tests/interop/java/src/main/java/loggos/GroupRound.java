package loggos;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.GroupListing;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Groups of both protocols: static members, seek and rewind, commits of each kind, administration, live upgrade. */
public final class GroupRound {
    private static final Duration SHORT = Duration.ofMillis(50);
    private static final long PATIENCE_MS = 60_000;
    private static final int RECORDS = 40;

    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
            admin.createTopics(List.of(new NewTopic("grouped", 4, (short) 1))).all().get(30, TimeUnit.SECONDS);
            produce(bootstrap);
            for (String protocol : List.of("classic", "consumer")) {
                rewind(bootstrap, protocol);
                comeBack(bootstrap, protocol);
                administer(admin, bootstrap, protocol);
            }
            byPattern(bootstrap);
            upgrade(admin, bootstrap);
        }
        System.out.println("ok");
    }

    private static void produce(String bootstrap) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer())) {
            for (int n = 0; n < RECORDS; n++) {
                producer.send(new ProducerRecord<>("grouped", n % 4, 1_000L + n, null, "" + n)).get();
            }
        }
    }

    private static KafkaConsumer<String, String> consumer(
            String bootstrap, String group, String protocol, String instance) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("group.id", group);
        properties.put("group.protocol", protocol);
        properties.put("enable.auto.commit", "false");
        properties.put("auto.offset.reset", "earliest");
        if (instance != null) {
            properties.put("group.instance.id", instance);
        }
        if (protocol.equals("classic")) {
            properties.put("heartbeat.interval.ms", "200");
            properties.put("session.timeout.ms", "30000");
            properties.put("partition.assignment.strategy",
                    "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        }
        return new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer());
    }

    /** Polls all consumers until the condition holds; what they read goes to nobody. */
    private static void until(String what, List<KafkaConsumer<String, String>> consumers, BooleanSupplier done) {
        long end = System.currentTimeMillis() + PATIENCE_MS;
        while (!done.getAsBoolean()) {
            check(System.currentTimeMillis() < end, what);
            for (KafkaConsumer<String, String> consumer : consumers) {
                consumer.poll(SHORT);
            }
        }
    }

    private static List<ConsumerRecord<String, String>> read(KafkaConsumer<String, String> consumer, int count) {
        List<ConsumerRecord<String, String>> found = new ArrayList<>();
        long end = System.currentTimeMillis() + PATIENCE_MS;
        while (found.size() < count) {
            check(System.currentTimeMillis() < end, "read " + found.size() + " of " + count);
            consumer.poll(SHORT).forEach(found::add);
        }
        return found;
    }

    private static void rewind(String bootstrap, String protocol) throws Exception {
        String group = "rewind-" + protocol;
        TopicPartition zero = new TopicPartition("grouped", 0);
        try (KafkaConsumer<String, String> consumer = consumer(bootstrap, group, protocol, null)) {
            consumer.subscribe(List.of("grouped"));
            check(read(consumer, RECORDS).size() == RECORDS, "everything once");
            consumer.commitSync();
            consumer.seekToBeginning(consumer.assignment());
            check(read(consumer, RECORDS).size() == RECORDS, "everything again");
            OffsetAndTimestamp found = consumer.offsetsForTimes(Map.of(zero, 1_020L)).get(zero);
            check(found.offset() == 5 && found.timestamp() == 1_020, "the first record at that time: " + found);
            consumer.seek(zero, 5);
            check(read(consumer, 5).get(0).value().equals("20"), "from that record on");
            boolean[] told = {false};
            Map<TopicPartition, OffsetAndMetadata> place = Map.of(zero, new OffsetAndMetadata(7, "a note"));
            consumer.commitAsync(place, (offsets, error) -> {
                check(error == null, "" + error);
                told[0] = true;
            });
            until("the commit is answered", List.of(consumer), () -> told[0]);
            OffsetAndMetadata kept = consumer.committed(Set.of(zero)).get(zero);
            check(kept.offset() == 7 && kept.metadata().equals("a note"), "" + kept);
        }
        try (KafkaConsumer<String, String> heir = consumer(bootstrap, group, protocol, null)) {
            heir.subscribe(List.of("grouped"));
            List<ConsumerRecord<String, String>> rest = read(heir, 3);
            check(rest.size() == 3 && rest.get(0).offset() == 7, "from the commit on");
        }
    }

    /** A static member that comes back takes its own partitions, and the others hear nothing of it. */
    private static void comeBack(String bootstrap, String protocol) {
        String group = "static-" + protocol;
        KafkaConsumer<String, String> one = consumer(bootstrap, group, protocol, "one");
        KafkaConsumer<String, String> two = consumer(bootstrap, group, protocol, "two");
        try {
            one.subscribe(List.of("grouped"));
            two.subscribe(List.of("grouped"));
            KafkaConsumer<String, String> first = two;
            until("both have a half", List.of(one, two),
                    () -> one.assignment().size() == 2 && first.assignment().size() == 2);
            Set<TopicPartition> before = Set.copyOf(two.assignment());
            String kept = "" + one.assignment();
            two.close();
            two = consumer(bootstrap, group, protocol, "two");
            two.subscribe(List.of("grouped"));
            KafkaConsumer<String, String> second = two;
            until("it has its own again", List.of(one, two), () -> second.assignment().equals(before));
            check(kept.equals("" + one.assignment()), "the other keeps its own");
        } finally {
            one.close();
            two.close();
        }
    }

    private static void administer(Admin admin, String bootstrap, String protocol) throws Exception {
        String group = "managed-" + protocol;
        TopicPartition zero = new TopicPartition("grouped", 0);
        try (KafkaConsumer<String, String> consumer = consumer(bootstrap, group, protocol, null)) {
            consumer.subscribe(List.of("grouped"));
            read(consumer, RECORDS);
            consumer.commitSync();
            ConsumerGroupDescription told =
                    admin.describeConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS).get(group);
            check(told.members().size() == 1, "" + told);
            check(told.members().iterator().next().assignment().topicPartitions().size() == 4, "" + told);
            check(told.type() == GroupType.parse(protocol), "" + told);
            check(told.members().iterator().next().host().equals("/127.0.0.1"), "" + told);
            expect(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all());
        }
        GroupListing listed = admin.listGroups().all().get(30, TimeUnit.SECONDS).stream()
                .filter(known -> known.groupId().equals(group)).findFirst().orElseThrow();
        check(listed.type().orElseThrow() == GroupType.parse(protocol), "" + listed);
        admin.alterConsumerGroupOffsets(group, Map.of(zero, new OffsetAndMetadata(3))).all()
                .get(30, TimeUnit.SECONDS);
        Map<TopicPartition, OffsetAndMetadata> offsets = admin.listConsumerGroupOffsets(group)
                .partitionsToOffsetAndMetadata().get(30, TimeUnit.SECONDS);
        check(offsets.size() == 4 && offsets.get(zero).offset() == 3, "" + offsets);
        admin.deleteConsumerGroupOffsets(group, Set.of(zero)).all().get(30, TimeUnit.SECONDS);
        offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get(30, TimeUnit.SECONDS);
        check(offsets.size() == 3 && !offsets.containsKey(zero), "" + offsets);
        admin.deleteConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS);
        expect(GroupIdNotFoundException.class, () -> admin.deleteConsumerGroups(List.of(group)).all());
    }

    private static void byPattern(String bootstrap) {
        try (KafkaConsumer<String, String> consumer = consumer(bootstrap, "pattern", "consumer", null)) {
            consumer.subscribe(new SubscriptionPattern("gr.*d"));
            check(read(consumer, RECORDS).size() == RECORDS, "the broker knows which topics those are");
        }
    }

    /** Members change to the new protocol one by one, and back, while the group goes on. */
    private static void upgrade(Admin admin, String bootstrap) throws Exception {
        String group = "changing";
        List<String> path = List.of("classic", "consumer", "classic");
        KafkaConsumer<String, String> last = consumer(bootstrap, group, path.get(0), null);
        last.subscribe(List.of("grouped"));
        read(last, RECORDS);
        last.commitSync();
        for (String protocol : path.subList(1, 3)) {
            KafkaConsumer<String, String> before = last;
            KafkaConsumer<String, String> next = consumer(bootstrap, group, protocol, null);
            next.subscribe(List.of("grouped"));
            until("old and new share the topic", List.of(before, next),
                    () -> before.assignment().size() == 2 && next.assignment().size() == 2);
            before.close();
            until("the new one has it all", List.of(next), () -> next.assignment().size() == 4);
            ConsumerGroupDescription told =
                    admin.describeConsumerGroups(List.of(group)).all().get(30, TimeUnit.SECONDS).get(group);
            check(told.type() == GroupType.parse(protocol), "" + told);
            last = next;
        }
        check(last.committed(last.assignment()).values().stream().mapToLong(OffsetAndMetadata::offset).sum() == RECORDS,
                "the offsets are where they were");
        last.close();
    }

    private interface Asked {
        org.apache.kafka.common.KafkaFuture<Void> ask();
    }

    private static void expect(Class<? extends Exception> error, Asked asked) throws Exception {
        try {
            asked.ask().get(30, TimeUnit.SECONDS);
        } catch (ExecutionException refused) {
            check(error.isInstance(refused.getCause()), "" + refused.getCause());
            return;
        }
        throw new AssertionError("expected " + error);
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
