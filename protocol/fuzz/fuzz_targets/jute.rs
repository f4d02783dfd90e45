//! Any frame is decoded as one of ZooKeeper's without harm.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, Request};

fuzz_target!(|data: &[u8]| {
    let frame = Bytes::copy_from_slice(data);
    let _ = ConnectRequest::decode(frame.clone());
    let _ = ConnectResponse::decode(frame.clone());
    let _ = Request::decode(frame);
});
