// A member of a group with kafkajs: reads, commits what it has read, prints it as `partition offset value`.
//   node member.js BOOTSTRAP GROUP TOPIC
// It leaves when its standard input ends.
const { Kafka, logLevel } = require("kafkajs");

const [bootstrap, groupId, topic] = process.argv.slice(2);
const kafka = new Kafka({ brokers: [bootstrap], logLevel: logLevel.ERROR, retry: { retries: 20 } });
const consumer = kafka.consumer({ groupId, sessionTimeout: 30000, heartbeatInterval: 300 });

async function main() {
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: true });
  await consumer.run({
    autoCommitThreshold: 1,
    eachMessage: async ({ partition, message }) => {
      process.stdout.write(`${partition} ${message.offset} ${message.value}\n`);
    },
  });
  process.stdin.on("end", async () => {
    await consumer.disconnect();
    process.exit(0);
  });
  process.stdin.resume();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
