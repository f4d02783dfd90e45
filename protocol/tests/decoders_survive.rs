//! Golden frames with bytes changed, cut and doubled at random are decoded without harm: what protocol/fuzz does for
//! hours on nightly, for a moment on stable.

use bytes::{Bytes, BytesMut};
use loggos_protocol::batch::{self, Limits};
use loggos_protocol::frame::FrameDecoder;
use loggos_protocol::kafka::messages::*;
use loggos_protocol::kafka::{decode_request, decode_response, refuse};
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, Request};
use proptest::prelude::*;

fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("a golden file")).collect()
}

fn all_decoders(bytes: &Bytes) {
    let mut stream = BytesMut::from(&bytes[..]);
    while let Ok(Some(_)) = FrameDecoder::new(1 << 16).decode(&mut stream) {}
    let _ = ConnectRequest::decode(bytes.clone());
    let _ = ConnectResponse::decode(bytes.clone());
    let _ = Request::decode(bytes.clone());
    match decode_request(bytes.clone()) {
        Ok(request) => match request.header.key() as i16 {
            0 => {
                if let Ok(body) = request.decode::<ProduceRequest>() {
                    let topics = body.topic_data.into_iter().flat_map(|topic| topic.partition_data);
                    topics.filter_map(|data| data.records).for_each(|records| batches(&records));
                }
            }
            1 => drop(request.decode::<FetchRequest>()),
            2 => drop(request.decode::<ListOffsetsRequest>()),
            3 => drop(request.decode::<MetadataRequest>()),
            18 => drop(request.decode::<ApiVersionsRequest>()),
            19 => drop(request.decode::<CreateTopicsRequest>()),
            22 => drop(request.decode::<InitProducerIdRequest>()),
            32 => drop(request.decode::<DescribeConfigsRequest>()),
            _ => {}
        },
        Err(error) => drop(refuse(bytes, &error)),
    }
    if let Ok((_, answer)) = decode_response::<FetchRequest>(bytes.clone(), 11) {
        let partitions = answer.responses.into_iter().flat_map(|topic| topic.partitions);
        partitions.filter_map(|partition| partition.records).for_each(|records| batches(&records));
    }
    let _ = decode_response::<MetadataRequest>(bytes.clone(), 13);
}

fn batches(bytes: &Bytes) {
    let _ = batch::validate(bytes.clone(), &Limits::produced(1 << 20));
    for found in batch::split(bytes.clone()).flatten() {
        if let Ok(records) = batch::records_within(&found, 1 << 20) {
            let _ = records.take(1000).take_while(Result::is_ok).count();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn changed_frames_do_no_harm(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..8u8), 0..6),
    ) {
        let seeds = seeds_once();
        let mut bytes = seeds[which.index(seeds.len())].clone();
        for (at, value, what) in changes {
            let at = at.index(bytes.len().max(1));
            match what {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, value),
                2 if bytes.len() < 10_000 => bytes.extend_from_within(at.min(bytes.len())..),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
            }
        }
        all_decoders(&Bytes::from(bytes));
    }
}

fn seeds_once() -> &'static Vec<Vec<u8>> {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(seeds)
}
