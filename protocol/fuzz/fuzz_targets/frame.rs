//! Any stream of bytes is cut into frames without harm.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use loggos_protocol::frame::FrameDecoder;

fuzz_target!(|data: &[u8]| {
    let decoder = FrameDecoder::new(1 << 16);
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
});
