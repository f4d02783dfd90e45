// Members of groups with franz-go and sarama: each reads, commits what it has read, prints it as
// "partition offset value", and leaves when its standard input ends.
//
//	interop franz|sarama BOOTSTRAP GROUP TOPIC
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	client, bootstrap, group, topic := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	over, end := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end()
	}()
	if client == "franz" {
		franz(over, bootstrap, group, topic)
	} else {
		shopify(over, bootstrap, group, topic)
	}
}

func franz(over context.Context, bootstrap, group, topic string) {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(),
		kgo.SessionTimeout(30*time.Second), kgo.HeartbeatInterval(300*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for over.Err() == nil {
		fetches := client.PollFetches(over)
		out := bufio.NewWriter(os.Stdout)
		fetches.EachRecord(func(record *kgo.Record) {
			fmt.Fprintln(out, record.Partition, record.Offset, string(record.Value))
		})
		_ = out.Flush()
		if err := client.CommitUncommittedOffsets(context.Background()); err != nil {
			// A rebalance took the partitions: their heirs read on from the last commit.
			log.Print(err)
		}
	}
}

type handler struct{}

func (handler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (handler) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, ok := <-claim.Messages():
			if !ok {
				return nil
			}
			fmt.Printf("%d %d %s\n", message.Partition, message.Offset, message.Value)
			session.MarkMessage(message, "")
			session.Commit()
		case <-session.Context().Done():
			return nil
		}
	}
}

func shopify(over context.Context, bootstrap, group, topic string) {
	config := sarama.NewConfig()
	config.Version = sarama.V2_8_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Group.Session.Timeout = 30 * time.Second
	config.Consumer.Group.Heartbeat.Interval = 300 * time.Millisecond
	client, err := sarama.NewConsumerGroup([]string{bootstrap}, group, config)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for over.Err() == nil {
		if err := client.Consume(over, []string{topic}, handler{}); err != nil {
			if errors.Is(err, sarama.ErrClosedConsumerGroup) {
				return
			}
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}
