"""A member of a group, as a service would write it: reads, commits what it has read, prints it, goes on.

    member.py confluent|kafka-python|aiokafka BOOTSTRAP GROUP TOPIC

Each record is printed as `partition offset value`. It leaves when its standard input ends.
"""

import asyncio
import sys
import threading

client, bootstrap, group, topic = sys.argv[1:5]
over = threading.Event()


def wait_for_the_end():
    sys.stdin.read()
    over.set()


threading.Thread(target=wait_for_the_end, daemon=True).start()


def told(partition, offset, value):
    print(partition, offset, value.decode(), flush=True)


def confluent():
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False,
                         "auto.offset.reset": "earliest", "partition.assignment.strategy": "cooperative-sticky",
                         "session.timeout.ms": 30_000, "heartbeat.interval.ms": 300})
    consumer.subscribe([topic])
    while not over.is_set():
        messages = [message for message in consumer.consume(100, 0.1) if not message.error()]
        for message in messages:
            told(message.partition(), message.offset(), message.value())
        if messages:
            consumer.commit(asynchronous=True)
    consumer.close()


def kafka_python():
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False,
                             auto_offset_reset="earliest", session_timeout_ms=30_000, heartbeat_interval_ms=300)
    while not over.is_set():
        records = consumer.poll(timeout_ms=100)
        for batch in records.values():
            for record in batch:
                told(record.partition, record.offset, record.value)
        if records:
            try:
                consumer.commit()
            except Exception as error:  # a rebalance takes the partition: its heir reads on from the last commit
                print("not committed:", error, file=sys.stderr)
    consumer.close()


async def aiokafka():
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False,
                                auto_offset_reset="earliest", session_timeout_ms=30_000, heartbeat_interval_ms=300)
    await consumer.start()
    while not over.is_set():
        records = await consumer.getmany(timeout_ms=100)
        for batch in records.values():
            for record in batch:
                told(record.partition, record.offset, record.value)
        if records:
            try:
                await consumer.commit()
            except Exception as error:  # as above
                print("not committed:", error, file=sys.stderr)
    await consumer.stop()


if client == "confluent":
    confluent()
elif client == "kafka-python":
    kafka_python()
else:
    asyncio.run(aiokafka())
