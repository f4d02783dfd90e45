"""confluent-kafka (librdkafka) against a running broker: admin, produce, read by offset and by time."""

import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

TIMEOUT = 30
RECORDS = 500
bootstrap = sys.argv[1]

admin = AdminClient({"bootstrap.servers": bootstrap})
for future in admin.create_topics([NewTopic("confluent", num_partitions=3, replication_factor=1)]).values():
    future.result(TIMEOUT)
assert "confluent" in admin.list_topics(timeout=TIMEOUT).topics
resource = ConfigResource(ConfigResource.Type.TOPIC, "confluent")
configs = admin.describe_configs([resource])[resource].result(TIMEOUT)
assert configs["cleanup.policy"].value == "delete", configs["cleanup.policy"]

acknowledged = []


def remember(error, message):
    assert error is None, error
    acknowledged.append((message.partition(), message.offset(), message.value()))


producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "compression.type": "lz4"})
for number in range(RECORDS):
    producer.produce("confluent", value=str(number).encode(), key=str(number % 10).encode(), timestamp=1_000 + number,
                     on_delivery=remember)
    producer.poll(0)
assert producer.flush(TIMEOUT) == 0
assert len(acknowledged) == RECORDS

consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "round", "enable.auto.commit": False})
ends = {}
for partition in range(3):
    low, high = consumer.get_watermark_offsets(TopicPartition("confluent", partition), timeout=TIMEOUT)
    assert low == 0
    ends[partition] = high
assert sum(ends.values()) == RECORDS
consumer.assign([TopicPartition("confluent", partition, 0) for partition in ends])
seen = set()
while len(seen) < RECORDS:
    message = consumer.poll(TIMEOUT)
    assert message is not None and message.error() is None, message
    seen.add((message.partition(), message.offset(), message.value()))
assert seen == set(acknowledged)
[found] = consumer.offsets_for_times([TopicPartition("confluent", 0, 0)], timeout=TIMEOUT)
assert found.offset == 0
consumer.close()
for future in admin.delete_topics(["confluent"]).values():
    future.result(TIMEOUT)
print("ok")
