"""aiokafka (old, non-flexible versions, checks every CRC) against a running broker."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

RECORDS = 300
TIMEOUT = 60
bootstrap = sys.argv[1]


async def make_round():
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("aiokafka", num_partitions=1, replication_factor=1)])
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, compression_type="gzip")
    await producer.start()
    deliveries = [await producer.send("aiokafka", str(number).encode(), partition=0) for number in range(RECORDS)]
    offsets = [(await delivery).offset for delivery in deliveries]
    assert offsets == list(range(RECORDS)), offsets[:10]
    await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    partition = TopicPartition("aiokafka", 0)
    consumer.assign([partition])
    consumer.seek(partition, 100)
    for expected in range(100, RECORDS):
        record = await consumer.getone()
        assert (record.offset, record.value) == (expected, str(expected).encode()), record
    await consumer.seek_to_beginning(partition)
    record = await consumer.getone()
    assert record.offset == 0
    await consumer.stop()
    await admin.close()


asyncio.run(asyncio.wait_for(make_round(), TIMEOUT))
print("ok")
