//! systemd's journal, through `journalctl -o json`: each entry is a record, its cursor the position. The program is
//! started again where it stopped. Called by `mod`.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::config::{Journal, Key};
use super::item::{Item, Origin, Parcel, Stamp, wall_clock};
use super::status::{Status, add};
use loggos_protocol::ids::{Timestamp, TopicName};

/// Before `journalctl` is started again.
const PAUSE: Duration = Duration::from_secs(2);
/// Entries that go on together.
const TOGETHER: usize = 256;

/// One `[[journal]]`.
#[derive(Debug)]
pub struct Follower {
    /// Its options.
    pub options: Journal,
    /// What its position is kept under.
    pub input: Arc<str>,
    /// The topic.
    pub topic: TopicName,
    /// This machine.
    pub host: String,
    /// Where records go: a journal can be read again, as files can.
    pub parcels: mpsc::Sender<Parcel>,
    /// Where they are counted.
    pub status: Arc<Status>,
}

impl Follower {
    /// Follows from behind `cursor`; with `once`, to the end.
    pub async fn run(self, mut cursor: Option<String>, once: bool) {
        loop {
            match self.read(&mut cursor, once).await {
                Ok(true) if !once => {}
                Ok(_) => return,
                Err(error) => tracing::warn!(%error, "journalctl"),
            }
            if once {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether anybody takes more.
    async fn read(&self, cursor: &mut Option<String>, once: bool) -> std::io::Result<bool> {
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--all", "--quiet", "--no-pager"]);
        if !once {
            command.args(["--follow", "--no-tail"]);
        }
        for file in &self.options.files {
            command.arg(format!("--file={}", file.display()));
        }
        if let Some(directory) = &self.options.directory {
            command.arg(format!("--directory={}", directory.display()));
        }
        if let Some(cursor) = cursor {
            command.arg(format!("--after-cursor={cursor}"));
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        while let Some(line) = lines.next_line().await? {
            let mut items = Vec::new();
            self.take(line, cursor, &mut items);
            // Entries that are there already go together.
            while items.len() < TOGETHER
                && let Ok(Ok(Some(line))) =
                    tokio::time::timeout(Duration::from_millis(5), lines.next_line()).await
            {
                self.take(line, cursor, &mut items);
            }
            if !items.is_empty() && self.parcels.send(Parcel::Items(items)).await.is_err() {
                return Ok(false);
            }
        }
        Ok(child.wait().await?.success())
    }

    fn take(&self, line: String, cursor: &mut Option<String>, items: &mut Vec<Item>) {
        let Ok(entry) = serde_json::from_str::<Value>(&line) else { return };
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let Some(place) = text("__CURSOR") else { return };
        *cursor = Some(place.to_owned());
        let unit = text("_SYSTEMD_UNIT").or_else(|| text("SYSLOG_IDENTIFIER")).unwrap_or("journal");
        let micros: Option<i64> = text("__REALTIME_TIMESTAMP").and_then(|text| text.parse().ok());
        let time = micros.map_or_else(wall_clock, |micros| Timestamp::new(micros / 1_000));
        let path = if self.options.key == Key::Path { unit } else { "journal" };
        let stamp = Stamp::new(self.topic.clone(), &self.host, path, self.options.key);
        let mut facts = vec![("unit", Bytes::copy_from_slice(unit.as_bytes()))];
        facts.extend(
            text("PRIORITY").map(|severity| ("severity", Bytes::copy_from_slice(severity.as_bytes()))),
        );
        let sequence = text("__SEQNUM").and_then(|text| text.parse().ok()).unwrap_or(0);
        let origin = Origin::Journal { input: Arc::clone(&self.input), cursor: place.into() };
        add(&self.status.records_read, 1);
        add(&self.status.bytes_read, line.len() as u64);
        items.push(stamp.item(line.into(), sequence, time, facts, origin));
    }
}
