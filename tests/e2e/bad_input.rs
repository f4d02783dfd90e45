//! Bytes that no client should send: each gets a clear answer or a closed connection, and costs nobody else anything.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::process::{DEADLINE, Server, loggos_ok};

fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.addresses().kafka).expect("the broker answers");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

/// Sends `bytes` and reads until the broker closes; gives what it said before.
fn said_before_closing(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = connect(server);
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer
}

fn frame(api_key: i16, api_version: i16, body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(api_key.to_be_bytes());
    payload.extend(api_version.to_be_bytes());
    payload.extend(7_i32.to_be_bytes());
    payload.extend((-1_i16).to_be_bytes());
    payload.extend(body);
    let mut frame = (payload.len() as i32).to_be_bytes().to_vec();
    frame.extend(payload);
    frame
}

#[test]
fn torn_oversized_and_foreign_frames_close_only_their_own_connection() {
    let server = Server::start(&[]);
    assert!(said_before_closing(&server, &(-1_i32).to_be_bytes()).is_empty(), "a negative length");
    assert!(said_before_closing(&server, &i32::MAX.to_be_bytes()).is_empty(), "more than we take");
    assert!(said_before_closing(&server, b"GET / HTTP/1.1\r\n\r\n").is_empty(), "another protocol");
    assert!(said_before_closing(&server, &frame(999, 0, &[])).is_empty(), "an API that nobody knows");
    assert!(said_before_closing(&server, &frame(3, 9, &[0xff; 40])).is_empty(), "a body that isn't one");
    let mut torn = frame(3, 1, &[0, 0, 0, 0]);
    torn.truncate(torn.len() - 2);
    let mut socket = connect(&server);
    socket.write_all(&torn).expect("half a frame");
    socket.shutdown(std::net::Shutdown::Write).expect("a half-close");
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).expect("the broker closes too");
    assert!(rest.is_empty());
    loggos_ok(&["topic", "list", "--bootstrap", &server.bootstrap()]);
}

#[test]
fn an_unknown_version_of_api_versions_is_answered_in_version_0_with_code_35() {
    let server = Server::start(&[]);
    let mut socket = connect(&server);
    socket.write_all(&frame(18, 99, &[])).expect("a request");
    let mut head = [0_u8; 10];
    socket.read_exact(&mut head).expect("an answer");
    assert_eq!(head[4..8], 7_i32.to_be_bytes(), "the correlation id");
    assert_eq!(head[8..10], 35_i16.to_be_bytes(), "UNSUPPORTED_VERSION");
}
