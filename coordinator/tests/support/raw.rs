//! A client that sends and shows bytes as they are, for what no client library can say.

use bytes::{Bytes, BytesMut};
use loggos_protocol::frame::{FrameDecoder, put_frame};
use loggos_protocol::ids::{SessionId, Zxid};
use loggos_protocol::zookeeper::jute::Reader;
use loggos_protocol::zookeeper::{ConnectRequest, ConnectResponse, ErrorCode, ReplyHeader, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// One connection.
pub struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    /// Connects, and says nothing.
    pub async fn connect(address: &str) -> Self {
        let stream = within(TcpStream::connect(address)).await.expect("somebody listens");
        Self { stream, buffer: BytesMut::new() }
    }

    /// Connects with a new session.
    pub async fn open(address: &str) -> (Self, ConnectResponse) {
        let mut raw = Self::connect(address).await;
        raw.send_connect(&connect_request()).await;
        let response = ConnectResponse::decode(raw.frame().await.expect("an answer")).expect("a response");
        (raw, response)
    }

    /// Sends a connect request.
    pub async fn send_connect(&mut self, request: &ConnectRequest) {
        let mut payload = BytesMut::new();
        request.encode(&mut payload);
        self.send_payload(&payload).await;
    }

    /// Sends requests in one write.
    pub async fn send(&mut self, requests: &[(i32, Request)]) {
        let mut frames = BytesMut::new();
        for (xid, request) in requests {
            let mut payload = BytesMut::new();
            request.encode(*xid, &mut payload);
            put_frame(&mut frames, &payload);
        }
        self.send_bytes(&frames).await;
    }

    /// Sends one frame.
    pub async fn send_payload(&mut self, payload: &[u8]) {
        let mut frame = BytesMut::new();
        put_frame(&mut frame, payload);
        self.send_bytes(&frame).await;
    }

    /// Sends bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.expect("the server reads");
    }

    /// The next frame; `None` when the server has closed.
    pub async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = FrameDecoder::default().decode(&mut self.buffer).expect("an honest server") {
                return Some(frame);
            }
            match within(self.stream.read_buf(&mut self.buffer)).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next reply's header, and its body.
    pub async fn reply(&mut self) -> (ReplyHeader, Reader) {
        let mut reader = Reader::new(self.frame().await.expect("a reply"));
        (ReplyHeader::decode(&mut reader).expect("a header"), reader)
    }

    /// The next reply's xid and error.
    pub async fn outcome(&mut self) -> (i32, ErrorCode) {
        let (header, _) = self.reply().await;
        (header.xid, header.error)
    }

    /// Everything up to the end.
    pub async fn text(mut self) -> String {
        let mut text = String::new();
        within(self.stream.read_to_string(&mut text)).await.expect("text");
        text
    }
}

/// A request for a new session.
pub fn connect_request() -> ConnectRequest {
    ConnectRequest {
        protocol_version: 0,
        last_zxid_seen: Zxid::new(0),
        timeout_ms: 10_000,
        session: SessionId::new(0),
        password: Bytes::from_static(&[0; 16]),
        read_only: Some(false),
    }
}
