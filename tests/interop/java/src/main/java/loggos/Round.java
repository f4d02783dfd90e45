package loggos;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Admin, produce with every codec, consume by offset and by time, delete records: as a Java user does. */
public final class Round {
    private static final Duration PATIENCE = Duration.ofSeconds(30);
    private static final int RECORDS = 1_000;

    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
            administer(admin);
            for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
                produceAndConsume(admin, bootstrap, codec);
            }
        }
        System.out.println("ok");
    }

    private static void administer(Admin admin) throws Exception {
        check(admin.describeCluster().nodes().get(30, TimeUnit.SECONDS).size() == 1, "one broker");
        NewTopic topic = new NewTopic("java-managed", 2, (short) 1).configs(Map.of("retention.ms", "60000"));
        admin.createTopics(List.of(topic)).all().get(30, TimeUnit.SECONDS);
        try {
            admin.createTopics(List.of(topic)).all().get(30, TimeUnit.SECONDS);
            throw new AssertionError("a topic was made twice");
        } catch (ExecutionException expected) {
            check(expected.getCause() instanceof TopicExistsException, "the second is refused");
        }
        admin.createPartitions(Map.of("java-managed", NewPartitions.increaseTo(4))).all().get(30, TimeUnit.SECONDS);
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, "java-managed");
        AlterConfigOp set = new AlterConfigOp(new ConfigEntry("retention.ms", "90000"), AlterConfigOp.OpType.SET);
        admin.incrementalAlterConfigs(Map.of(resource, List.of(set))).all().get(30, TimeUnit.SECONDS);
        String value = admin.describeConfigs(List.of(resource)).all().get(30, TimeUnit.SECONDS)
            .get(resource).get("retention.ms").value();
        check(value.equals("90000"), "the altered config is described");
        int partitions = admin.describeTopics(List.of("java-managed")).allTopicNames().get(30, TimeUnit.SECONDS)
            .get("java-managed").partitions().size();
        check(partitions == 4, "four partitions");
        admin.deleteTopics(List.of("java-managed")).all().get(30, TimeUnit.SECONDS);
    }

    private static void produceAndConsume(Admin admin, String bootstrap, String codec) throws Exception {
        String topic = "java-" + codec;
        admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get(30, TimeUnit.SECONDS);
        Properties producing = new Properties();
        producing.put("bootstrap.servers", bootstrap);
        producing.put("compression.type", codec);
        producing.put("enable.idempotence", "true");
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer = new KafkaProducer<>(producing, new StringSerializer(), new StringSerializer())) {
            for (int n = 0; n < RECORDS; n++) {
                sent.add(producer.send(new ProducerRecord<>(topic, 0, 10_000L + n, "key", codec + n)));
            }
            producer.flush();
        }
        for (int n = 0; n < RECORDS; n++) {
            check(sent.get(n).get(30, TimeUnit.SECONDS).offset() == n, "offsets are dense");
        }
        TopicPartition partition = new TopicPartition(topic, 0);
        long byTime = admin.listOffsets(Map.of(partition, OffsetSpec.forTimestamp(10_500)))
            .partitionResult(partition).get(30, TimeUnit.SECONDS).offset();
        check(byTime == 500, "the offset for a time");
        long maximum = admin.listOffsets(Map.of(partition, OffsetSpec.maxTimestamp()))
            .partitionResult(partition).get(30, TimeUnit.SECONDS).offset();
        check(maximum == RECORDS - 1, "the offset of the greatest time");
        consume(bootstrap, codec, partition);
        admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(100))).all().get(30, TimeUnit.SECONDS);
        long start = admin.listOffsets(Map.of(partition, OffsetSpec.earliest()))
            .partitionResult(partition).get(30, TimeUnit.SECONDS).offset();
        check(start == 100, "records are deleted");
    }

    private static void consume(String bootstrap, String codec, TopicPartition partition) {
        Properties consuming = new Properties();
        consuming.put("bootstrap.servers", bootstrap);
        consuming.put("enable.auto.commit", "false");
        consuming.put("check.crcs", "true");
        try (var consumer = new KafkaConsumer<>(consuming, new StringDeserializer(), new StringDeserializer())) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            int next = 0;
            while (next < RECORDS) {
                for (ConsumerRecord<String, String> record : consumer.poll(PATIENCE)) {
                    check(record.offset() == next, "in order");
                    check(record.value().equals(codec + next), "the same bytes");
                    check(record.timestamp() == 10_000L + next, "the same time");
                    next++;
                }
            }
            OffsetAndTimestamp found = consumer.offsetsForTimes(Map.of(partition, 10_250L)).get(partition);
            check(found.offset() == 250, "the consumer's offset for a time");
            consumer.seek(partition, 42);
            check(consumer.poll(PATIENCE).iterator().next().offset() == 42, "a rewind");
        }
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }
}
