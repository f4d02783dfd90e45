"""kafka-python (pure Python, checks every CRC) against a running broker."""

import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

TIMEOUT_MS = 30_000
RECORDS = 300
bootstrap = sys.argv[1]

admin = KafkaAdminClient(bootstrap_servers=bootstrap)
admin.create_topics([NewTopic(name="kafka-python", num_partitions=2, replication_factor=1)])
producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", compression_type="gzip")
sent = [
    producer.send("kafka-python", value=str(number).encode(), key=b"k", partition=number % 2,
                  timestamp_ms=5_000 + number, headers=[("n", str(number).encode())])
    for number in range(RECORDS)
]
offsets = {(future.get(30).partition, future.get(30).offset) for future in sent}
assert len(offsets) == RECORDS
producer.close()

consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, consumer_timeout_ms=TIMEOUT_MS,
                         check_crcs=True)
partitions = [TopicPartition("kafka-python", partition) for partition in range(2)]
consumer.assign(partitions)
consumer.seek_to_beginning(*partitions)
seen = []
for record in consumer:
    assert dict(record.headers)["n"] == record.value
    seen.append(int(record.value))
    if len(seen) == RECORDS:
        break
assert sorted(seen) == list(range(RECORDS))
assert consumer.end_offsets(partitions) == {partition: RECORDS // 2 for partition in partitions}
times = consumer.offsets_for_times({partitions[0]: 5_100})
assert times[partitions[0]].offset == 50, times
consumer.seek(partitions[0], 149)
record = next(iter(consumer))
assert record.offset == 149, record
consumer.close()
admin.delete_topics(["kafka-python"])
admin.close()
print("ok")
