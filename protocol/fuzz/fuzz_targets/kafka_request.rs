//! Any frame is decoded as a request, header and body, without harm.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use loggos_protocol::kafka::messages::*;
use loggos_protocol::kafka::{decode_request, refuse};

fuzz_target!(|data: &[u8]| {
    let frame = Bytes::copy_from_slice(data);
    let request = match decode_request(frame.clone()) {
        Ok(request) => request,
        Err(error) => {
            let _ = refuse(&frame, &error);
            return;
        }
    };
    match request.header.key() as i16 {
        0 => drop(request.decode::<ProduceRequest>()),
        1 => drop(request.decode::<FetchRequest>()),
        2 => drop(request.decode::<ListOffsetsRequest>()),
        3 => drop(request.decode::<MetadataRequest>()),
        10 => drop(request.decode::<FindCoordinatorRequest>()),
        18 => drop(request.decode::<ApiVersionsRequest>()),
        19 => drop(request.decode::<CreateTopicsRequest>()),
        20 => drop(request.decode::<DeleteTopicsRequest>()),
        21 => drop(request.decode::<DeleteRecordsRequest>()),
        22 => drop(request.decode::<InitProducerIdRequest>()),
        23 => drop(request.decode::<OffsetForLeaderEpochRequest>()),
        32 => drop(request.decode::<DescribeConfigsRequest>()),
        33 => drop(request.decode::<AlterConfigsRequest>()),
        35 => drop(request.decode::<DescribeLogDirsRequest>()),
        37 => drop(request.decode::<CreatePartitionsRequest>()),
        44 => drop(request.decode::<IncrementalAlterConfigsRequest>()),
        60 => drop(request.decode::<DescribeClusterRequest>()),
        _ => {}
    }
});
