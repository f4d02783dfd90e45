//! `loggos coordinator status, members, add, remove, transfer`: asks a coordination server over its HTTP port.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Failure;

/// A change of the membership takes its time; anything else is answered at once.
const DEADLINE: Duration = Duration::from_secs(40);
/// The longest answer that is read.
const ANSWER_MAX: u64 = 4 << 20;

/// What a cell is asked.
#[derive(Subcommand)]
pub enum Command {
    /// How the server and its cell are: who leads, how far it is
    Status(Server),
    /// Who belongs to the cell, in which role, and where
    Members(Server),
    /// Make servers that were let in (with --join) voters, beside those that vote already
    Add(Some),
    /// Take servers out of the cell; their numbers are never used again
    Remove(Some),
    /// Give the lead to a server, or to the best one
    Transfer(Maybe),
}

/// Whom to ask.
#[derive(Args)]
pub struct Server {
    /// The HTTP port of any server of the cell
    #[arg(long, env = "LOGGOS_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:9644")]
    http: String,
}

/// Whom to ask, and about which servers.
#[derive(Args)]
pub struct Some {
    #[command(flatten)]
    server: Server,
    /// Numbers of servers, as `members` shows them
    #[arg(value_name = "NUMBER", required = true)]
    numbers: Vec<u16>,
}

/// Whom to ask, and about which server, if any.
#[derive(Args)]
pub struct Maybe {
    #[command(flatten)]
    server: Server,
    /// The number of the server that shall lead
    #[arg(value_name = "NUMBER")]
    number: Option<u16>,
}

/// Runs it.
pub async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(server) => {
            let status = ask(&server, "GET", "status").await?;
            print(&show_status(&status))
        }
        Command::Members(server) => {
            let status = ask(&server, "GET", "status").await?;
            print(&show_members(&status))
        }
        Command::Add(wish) => {
            let status = ask(&wish.server, "GET", "status").await?;
            let mut voters: Vec<u64> = members(&status)
                .filter(|member| member["role"] != "learner")
                .filter_map(|member| member["server"].as_u64())
                .collect();
            voters.extend(wish.numbers.iter().map(|number| u64::from(*number)));
            wish_for(&wish.server, "voters", voters).await
        }
        Command::Remove(wish) => {
            wish_for(&wish.server, "remove", wish.numbers.iter().map(|number| u64::from(*number))).await
        }
        Command::Transfer(wish) => wish_for(&wish.server, "transfer", wish.number.map(u64::from)).await,
    }
}

fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

async fn wish_for(
    server: &Server,
    name: &str,
    numbers: impl IntoIterator<Item = u64>,
) -> Result<(), Failure> {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    ask(server, "POST", &format!("{name}?servers={}", numbers.join(","))).await?;
    print("done\n")
}

fn members(status: &Value) -> impl Iterator<Item = &Value> {
    status["members"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn show_status(status: &Value) -> String {
    let mut shown = String::new();
    let fields = [
        ("cell", "cell"),
        ("server", "server"),
        ("mode", "mode"),
        ("leader", "leader"),
        ("leader's clients", "leader_client"),
        ("ballot", "ballot"),
        ("lease left, ms", "lease_left_ms"),
        ("applied slot", "applied"),
        ("zxid", "zxid"),
        ("sessions", "sessions"),
        ("connections here", "connections"),
    ];
    for (label, key) in fields {
        let _ = writeln!(shown, "{label:<18}{}", text(&status[key]));
    }
    if status["uncertain"] == true {
        let _ = writeln!(shown, "this disk has lost votes; the others make up for them");
    }
    shown
}

fn show_members(status: &Value) -> String {
    let mut shown = format!("{:<8}{:<10}{:<8}{:<28}clients\n", "server", "role", "leads", "peer");
    for member in members(status) {
        let leads = if member["leader"] == true { "yes" } else { "" };
        let _ = writeln!(
            shown,
            "{:<8}{:<10}{leads:<8}{:<28}{}",
            text(&member["server"]),
            text(&member["role"]),
            text(&member["peer"]),
            text(&member["client"]),
        );
    }
    shown
}

/// One request over HTTP/1.0: the answer's JSON, or what it says is wrong.
async fn ask(server: &Server, method: &str, path: &str) -> Result<Value, Failure> {
    let http = &server.http;
    let failed = |why: String| Failure::Failed(format!("--http: {http} {why}"));
    let asking = async {
        let mut socket = TcpStream::connect(http).await?;
        let request =
            format!("{method} /commands/{path} HTTP/1.0\r\nHost: {http}\r\nContent-Length: 0\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.take(ANSWER_MAX).read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(DEADLINE, asking)
        .await
        .map_err(|_| failed(format!("didn't answer within {} s", DEADLINE.as_secs())))?
        .map_err(|error| failed(format!("can't be asked: {error}")))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let told: Value = serde_json::from_str(body)
        .map_err(|_| failed("answers something else than a coordination server's commands".to_owned()))?;
    match &told["error"] {
        Value::Null => Ok(told),
        error => Err(Failure::Failed(text(error))),
    }
}
