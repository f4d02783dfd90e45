//! Fetches of a megabyte each from a running broker, whose bytes the kernel sends from the segment files, against
//! the same bytes written from memory over the same loopback. Prints a Markdown table.
//!
//! `cargo bench -p loggos-benches --bench fetch -- --runs 5`

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::Bytes;
use clap::Parser;
use loggos_benches::broker::{Broker, Kind};
use loggos_benches::load::{self, Shape};
use loggos_benches::table::{Runs, markdown};
use loggos_protocol::kafka::messages::fetch_request::{FetchPartition, FetchTopic};
use loggos_protocol::kafka::messages::{FetchRequest, TopicName};
use loggos_protocol::kafka::{StrBytes, decode_response, encode_request};

/// Bytes that one fetch asks for.
const FETCH_BYTES: usize = 1 << 20;
/// Records of 1 KiB that lie ready.
const RECORDS: u64 = 200_000;
/// Fetches of one run.
const FETCHES: usize = 2_000;
/// The version of the requests: the last that names topics.
const VERSION: i16 = 12;

#[derive(Parser)]
struct Options {
    /// Runs of each
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::print_stdout, reason = "a bench reports on stdout")]
fn main() -> io::Result<()> {
    let options = Options::parse();
    let (mut loopback, mut fetched) = (Runs::default(), Runs::default());
    for _ in 0..options.runs {
        loopback.push(memory_over_loopback()?);
        fetched.push(fetch_from_broker()?);
    }
    let rows = vec![
        ("loopback from memory".to_owned(), vec![loopback.show()]),
        ("fetch by sendfile".to_owned(), vec![fetched.show()]),
    ];
    println!("{}", markdown(&["MB/s"], &rows));
    Ok(())
}

fn memory_over_loopback() -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> io::Result<()> {
        let (mut socket, _) = listener.accept()?;
        let bytes = vec![7u8; FETCH_BYTES];
        let mut ask = [0; 1];
        while socket.read(&mut ask)? == 1 {
            socket.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut buffer = vec![0; FETCH_BYTES];
    let began = Instant::now();
    for _ in 0..FETCHES {
        socket.write_all(&[1])?;
        socket.read_exact(&mut buffer)?;
    }
    let took = began.elapsed();
    drop(socket);
    sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
    Ok((FETCHES * FETCH_BYTES) as f64 / took.as_secs_f64() / 1e6)
}

fn fetch_from_broker() -> io::Result<f64> {
    let broker = Broker::start(&Kind::Loggos, std::path::Path::new("."))?;
    let shape = Shape { topic: "fetched".to_owned(), partitions: 1, record_bytes: 1024, linger_ms: 5 };
    load::create_topic(&broker.bootstrap, &shape).map_err(io::Error::other)?;
    load::produce(&broker.bootstrap, &shape, RECORDS).map_err(io::Error::other)?;
    let mut socket = TcpStream::connect(&broker.bootstrap)?;
    socket.set_nodelay(true)?;
    let request = |offset: i64| {
        let partition =
            FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(FETCH_BYTES as i32);
        let topic = FetchTopic::default()
            .with_topic(TopicName(StrBytes::from_static_str("fetched")))
            .with_partitions(vec![partition]);
        let body = FetchRequest::default()
            .with_max_wait_ms(1000)
            .with_min_bytes(1)
            .with_max_bytes(64 << 20)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        encode_request(VERSION, 1, None, &body).map_err(io::Error::other)
    };
    let mut buffer = Vec::new();
    let mut moved = 0;
    let mut call = |socket: &mut TcpStream, offset: i64| -> io::Result<usize> {
        socket.write_all(&request(offset)?)?;
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        buffer.resize(u32::from_be_bytes(length) as usize, 0);
        socket.read_exact(&mut buffer)?;
        Ok(buffer.len())
    };
    call(&mut socket, 0)?;
    let began = Instant::now();
    for number in 0..FETCHES {
        // Somewhere in the first half: never at the end, where there would be less.
        moved += call(&mut socket, (number as i64 * 977) % (RECORDS as i64 / 2))?;
    }
    let took = began.elapsed();
    let (_, answer) =
        decode_response::<FetchRequest>(Bytes::from(buffer), VERSION).map_err(io::Error::other)?;
    if answer.responses.first().is_none_or(|topic| topic.partitions[0].error_code != 0) {
        return Err(io::Error::other("a fetch was refused"));
    }
    Ok(moved as f64 / took.as_secs_f64() / 1e6)
}
