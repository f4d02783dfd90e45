//! This machine's own numbers, from `/proc`: processors, memory, load, network, disks. One JSON record an interval;
//! counters are the kernel's own, since the machine's start. Called by `mod`.

use std::fs;

use serde_json::{Map, Value, json};

/// Bytes of a sector as the kernel counts disks.
const SECTOR: u64 = 512;

/// One record's text.
pub fn sample() -> String {
    json!({
        "cpu": cpu(&read("/proc/stat")),
        "load": load(&read("/proc/loadavg")),
        "memory": memory(&read("/proc/meminfo")),
        "network": network(&read("/proc/net/dev")),
        "disk": disks(&read("/proc/diskstats")),
    })
    .to_string()
}

fn read(path: &str) -> String {
    // Outside Linux, and in some containers, a part is missing: the others are of use all the same.
    fs::read_to_string(path).unwrap_or_default()
}

/// Hundredths of a second that all processors together have spent.
fn cpu(stat: &str) -> Value {
    let names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    let line = stat.lines().find(|line| line.starts_with("cpu ")).unwrap_or_default();
    let values = line.split_ascii_whitespace().skip(1).map(|word| word.parse::<u64>().unwrap_or(0));
    let mut map: Map<String, Value> =
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    let is_processor = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    map.insert("processors".to_owned(), stat.lines().filter(is_processor).count().into());
    map.into()
}

fn load(loadavg: &str) -> Value {
    loadavg.split_ascii_whitespace().take(3).filter_map(|word| word.parse::<f64>().ok()).collect()
}

/// Bytes.
fn memory(meminfo: &str) -> Value {
    let names = [
        ("MemTotal", "total"),
        ("MemAvailable", "available"),
        ("MemFree", "free"),
        ("Buffers", "buffers"),
        ("Cached", "cached"),
        ("SwapTotal", "swap_total"),
        ("SwapFree", "swap_free"),
    ];
    let found = meminfo.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let (_, shown) = names.iter().find(|(theirs, _)| *theirs == name)?;
        let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(((*shown).to_owned(), (kib * 1_024).into()))
    });
    Value::Object(found.collect())
}

/// Bytes and packets of each interface but the loopback.
fn network(dev: &str) -> Value {
    let found = dev.lines().skip(2).filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let values: Vec<u64> = rest.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let at = |place: usize| values.get(place).copied().unwrap_or(0);
        let name = name.trim();
        (name != "lo").then(|| {
            let counts = json!({
                "received_bytes": at(0), "received_packets": at(1), "receive_errors": at(2),
                "sent_bytes": at(8), "sent_packets": at(9), "send_errors": at(10),
            });
            (name.to_owned(), counts)
        })
    });
    Value::Object(found.collect())
}

/// What whole disks have read and written; partitions and devices that were never used are left out.
fn disks(diskstats: &str) -> Value {
    let found = diskstats.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = *words.get(2)?;
        let at = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let skipped = ["loop", "ram", "zram"].iter().any(|prefix| name.starts_with(prefix));
        (!skipped && at(3) + at(7) > 0).then(|| {
            let counts = json!({
                "reads": at(3), "read_bytes": at(5) * SECTOR, "writes": at(7), "written_bytes": at(9) * SECTOR,
                "busy_ms": at(12),
            });
            (name.to_owned(), counts)
        })
    });
    Value::Object(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_understood() {
        let cpu = cpu(
            "cpu  10 1 5 100 2 0 1 0 0 0\ncpu0 5 0 2 50 1 0 0 0 0 0\ncpu1 5 1 3 50 1 0 1 0 0 0\nintr 1\n",
        );
        assert_eq!((&cpu["user"], &cpu["idle"], &cpu["processors"]), (&json!(10), &json!(100), &json!(2)));
        assert_eq!(
            memory("MemTotal:  24 kB\nMemFree: 1 kB\nOther: 3 kB\n"),
            json!({"total": 24576, "free": 1024})
        );
        let net = network("Inter|\n face |\n    lo: 1 1\n  eth0: 100 2 0 0 0 0 0 0 200 3 1 0 0 0 0 0\n");
        assert_eq!((&net["eth0"]["received_bytes"], &net["eth0"]["sent_bytes"]), (&json!(100), &json!(200)));
        assert!(net.get("lo").is_none());
        let disk = disks("254 0 vda 10 0 8 5 20 0 16 9 0 7 14\n7 0 loop0 1 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!(disk["vda"]["reads"], json!(10));
        assert!(disk.get("loop0").is_none());
        assert!(load("0.5 0.25 0.1 1/100 1\n")[1] == json!(0.25));
    }
}
