package loggos;

import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;

import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.serialization.StringDeserializer;

/** A member of a group: reads, commits what it has read, prints it as "partition offset value", goes on. */
public final class Member {
    public static void main(String[] arguments) {
        AtomicBoolean over = new AtomicBoolean();
        Thread end = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {
                    // Only the end is of interest.
                }
            } catch (IOException ended) {
                // So has the input.
            }
            over.set(true);
        });
        end.setDaemon(true);
        end.start();
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[1]);
        properties.put("group.id", arguments[2]);
        properties.put("group.protocol", arguments[0]);
        properties.put("enable.auto.commit", "false");
        properties.put("auto.offset.reset", "earliest");
        if (arguments[0].equals("classic")) {
            properties.put("session.timeout.ms", "30000");
            properties.put("heartbeat.interval.ms", "300");
        }
        try (KafkaConsumer<String, String> consumer =
                new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(arguments[3]));
            while (!over.get()) {
                ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(100));
                StringBuilder told = new StringBuilder();
                for (ConsumerRecord<String, String> record : records) {
                    told.append(record.partition()).append(' ').append(record.offset()).append(' ');
                    told.append(record.value()).append('\n');
                }
                System.out.print(told);
                System.out.flush();
                if (!records.isEmpty()) {
                    try {
                        consumer.commitSync();
                    } catch (CommitFailedException | RebalanceInProgressException lost) {
                        // A rebalance took the partitions: their heirs read on from the last commit.
                        System.err.println(lost.getMessage());
                    }
                }
            }
        }
    }
}
