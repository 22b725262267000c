//! `undervisor report`: one HTML page from a trace in JSON lines, with everything in it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::options::ReportOptions;
use crate::stats::count;

const PAGE: &str = include_str!("report.html");
/// Bars of the timeline.
const BINS: usize = 400;
/// Reasons with a colour of their own; the rest shares one.
const SERIES: usize = 6;
/// Records that the table holds.
const RECORDS: usize = 20_000;
/// Rows of the heat table.
const HEAT: usize = 60;

/// A line of the trace, as far as the page needs it.
struct Line {
    time: u64,
    cpu: u64,
    level: u64,
    kind: String,
    name: String,
    code: String,
    rip: u64,
    symbol: String,
    more: String,
}

fn hex(v: &Value) -> Option<u64> {
    u64::from_str_radix(v.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Code of the instructions in the trace, by level and address.
#[derive(Default)]
struct Code(HashMap<(u64, u64), String>);

impl Code {
    fn add(&mut self, v: &Value, level: u64, rip: u64) {
        let text = v["bytes"].as_str().unwrap_or("");
        let bytes: Vec<u8> =
            (0..text.len() / 2).filter_map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect();
        let bits = match v["bits"].as_u64() {
            Some(b @ (16 | 32)) => b as u32,
            _ => 64,
        };
        let options = if v["vendor"] == "amd" { DecoderOptions::AMD } else { DecoderOptions::NONE };
        let insn = Decoder::with_ip(bits, &bytes, rip, options).decode();
        if !insn.is_invalid() {
            let mut out = String::new();
            FastFormatter::new().format(&insn, &mut out);
            self.0.insert((level, rip), out);
        }
    }
}

fn parse(v: &Value) -> Option<Line> {
    const KNOWN: [&str; 9] = ["t", "cpu", "level", "kind", "vendor", "rip", "name", "code", "symbol"];
    let more: Vec<String> = v
        .as_object()?
        .iter()
        .filter(|(k, v)| !KNOWN.contains(&k.as_str()) && v.as_str() != Some("0x0"))
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
        .collect();
    let text = |name: &str| v[name].as_str().unwrap_or("").to_owned();
    Some(Line {
        time: v["t"].as_u64()?,
        cpu: v["cpu"].as_u64().unwrap_or(0),
        level: v["level"].as_u64().unwrap_or(0),
        kind: v["kind"].as_str()?.to_owned(),
        name: text("name"),
        code: text("code"),
        rip: hex(&v["rip"]).unwrap_or(0),
        symbol: text("symbol"),
        more: more.join(" "),
    })
}

/// What runs on a processor: the level, since when, and the exit (code and level) that it handles.
type Running = (u64, u64, Option<(String, u64)>);

#[derive(Default)]
struct Sum {
    name: String,
    count: u64,
    guest: (u64, u64),
    host: (u64, u64),
}

#[derive(Default)]
struct Spot {
    symbol: String,
    count: u64,
    reasons: BTreeMap<String, u64>,
}

/// `undervisor report`.
pub fn run(o: &ReportOptions) -> Result<u8, Failure> {
    let page = build(o)?;
    std::fs::write(&o.output, page).map_err(|source| Failure::Write { path: o.output.clone(), source })?;
    Ok(0)
}

fn read(path: &PathBuf) -> Result<(Vec<Line>, Code), Failure> {
    let failed = |source| Failure::Read { path: path.clone(), source };
    let file = File::open(path).map_err(failed)?;
    let (mut lines, mut code) = (Vec::new(), Code::default());
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let bad = |why: String| Failure::Config { path: path.clone(), line: n + 1, why };
        let v: Value = serde_json::from_str(&line).map_err(|e| bad(format!("not a line of a JSON trace: {e}")))?;
        let parsed = parse(&v).ok_or_else(|| bad("not a record of a trace: no \"t\" or no \"kind\"".into()))?;
        if parsed.kind == "code" {
            code.add(&v, parsed.level, parsed.rip);
        } else {
            lines.push(parsed);
        }
    }
    Ok((lines, code))
}

fn build(o: &ReportOptions) -> Result<String, Failure> {
    let (lines, code) = read(&o.trace)?;
    let from = lines.first().map_or(0, |l| l.time);
    let to = lines.iter().map(|l| l.time).max().unwrap_or(0).max(from + 1);
    let bin = (to - from).div_ceil(BINS as u64).max(1);
    let place = |t: u64| ((t.saturating_sub(from) / bin) as usize).min(BINS - 1);

    let mut sums: BTreeMap<(String, u64), Sum> = BTreeMap::new();
    let mut spots: BTreeMap<(u64, u64), Spot> = BTreeMap::new();
    let mut levels = vec![[0u64; 2]; BINS];
    // By processor: what ran since when, and the exit being handled.
    let mut running: BTreeMap<u64, Running> = BTreeMap::new();
    for l in &lines {
        let enters = match l.kind.as_str() {
            "exit" => 1,
            "entry" => 2,
            _ => continue,
        };
        let key = (l.code.clone(), l.level);
        let before = running.insert(l.cpu, (enters, l.time, (enters == 1).then(|| key.clone())));
        if let Some((level, since, handled)) = before {
            fill(&mut levels, level, since.max(from), l.time, from, bin);
            let spent = l.time - since.min(l.time);
            if level == 2 && enters == 1 {
                let sum = sums.entry(key.clone()).or_default();
                sum.guest = (sum.guest.0 + spent, sum.guest.1 + 1);
            } else if let Some(sum) = handled.and_then(|k| sums.get_mut(&k)) {
                sum.host = (sum.host.0 + spent, sum.host.1 + 1);
            }
        }
        if enters == 1 {
            let sum = sums.entry(key).or_default();
            sum.count += 1;
            sum.name.clone_from(&l.name);
            let spot = spots.entry((l.level, l.rip)).or_default();
            spot.count += 1;
            spot.symbol.clone_from(&l.symbol);
            *spot.reasons.entry(l.name.clone()).or_default() += 1;
        }
    }
    let mut histogram: Vec<_> = sums.into_iter().collect();
    histogram.sort_by(|a, b| b.1.count.cmp(&a.1.count).then(a.0.cmp(&b.0)));
    let mut series: Vec<String> = Vec::new();
    for (_, sum) in &histogram {
        if series.len() < SERIES && !series.contains(&sum.name) {
            series.push(sum.name.clone());
        }
    }
    let named = series.len();
    let mut bins = vec![vec![0u64; named + 1]; BINS];
    for l in lines.iter().filter(|l| l.kind == "exit") {
        bins[place(l.time)][series.iter().position(|s| *s == l.name).unwrap_or(named)] += 1;
    }
    if bins.iter().all(|b| b[named] == 0) {
        bins.iter_mut().for_each(|b| b.truncate(named));
    } else {
        series.push("others".into());
    }
    let mut heat: Vec<_> = spots.into_iter().collect();
    heat.sort_by(|a, b| b.1.count.cmp(&a.1.count).then(a.0.cmp(&b.0)));
    let exits: u64 = histogram.iter().map(|h| h.1.count).sum();
    let failures = lines.iter().filter(|l| l.kind == "entry-failure").count() as u64;
    let processors = lines.iter().map(|l| l.cpu + 1).max().unwrap_or(0);
    let mean = |(total, n): (u64, u64)| total.checked_div(n).map_or(Value::Null, |mean| json!(mean));
    let name = o.trace.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let kept = if lines.len() > RECORDS {
        format!("The first {RECORDS} of {} records.", lines.len())
    } else {
        format!("All {} records.", lines.len())
    };
    let data = json!({
        "title": o.title.clone().unwrap_or_else(|| format!("undervisor: {name}")),
        "subtitle": format!("From instruction {from} to {to}; one instruction is one nanosecond of virtual time."),
        "tiles": [
            ["exits", count(exits)], ["kinds of exits", histogram.len().to_string()], ["places that exit", heat.len().to_string()],
            ["failed entries", count(failures)], ["records", count(lines.len() as u64)], ["processors", processors.to_string()],
        ],
        "from": from, "to": to, "bin": bin, "series": series, "bins": bins, "levels": levels,
        "histogram": histogram.iter().map(|((code, level), s)| {
            json!([s.name, code, format!("L{level}"), s.count, mean(s.guest), mean(s.host)])
        }).collect::<Vec<_>>(),
        "heat": heat.iter().take(HEAT).map(|((level, rip), s)| {
            let reasons: Vec<String> = s.reasons.iter().map(|(r, n)| format!("{r} {n}")).collect();
            let text = code.0.get(&(*level, *rip)).cloned().unwrap_or_default();
            json!([level, format!("{rip:#x}"), s.symbol, text, s.count, reasons.join(", ")])
        }).collect::<Vec<_>>(),
        "kept": kept,
        "records": lines.iter().take(RECORDS).map(|l| {
            json!([l.time, l.cpu, l.level, l.kind, l.name, format!("{:#x}", l.rip), l.symbol, l.more])
        }).collect::<Vec<_>>(),
    });
    // Inside a script element, only "</" and "<!--" could end it.
    let text = data.to_string().replace('<', "\\u003c");
    Ok(PAGE.replace("@DATA@", &text))
}

/// Add the time from `since` to `until` to the bins of a level.
fn fill(levels: &mut [[u64; 2]], level: u64, since: u64, until: u64, from: u64, bin: u64) {
    let Some(slot) = (level as usize).checked_sub(1).filter(|s| *s < 2) else { return };
    let mut at = since;
    while at < until {
        let i = (((at - from) / bin) as usize).min(levels.len() - 1);
        let end = (from + (i as u64 + 1) * bin).min(until).max(at + 1);
        levels[i][slot] += end - at;
        at = if i + 1 == levels.len() { until } else { end };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shared_among_bins() {
        let mut levels = vec![[0; 2]; 4];
        fill(&mut levels, 2, 5, 25, 0, 10);
        assert_eq!(levels, [[0, 5], [0, 10], [0, 5], [0, 0]]);
        fill(&mut levels, 1, 35, 60, 0, 10);
        assert_eq!(levels[3][0], 5);
    }

    #[test]
    fn a_page_has_its_data_and_no_links() {
        let path = std::env::temp_dir().join(format!("undervisor-report-{}.jsonl", std::process::id()));
        let code = r#"{"t":1,"cpu":0,"level":2,"kind":"code","vendor":"intel","rip":"0x4000","bytes":"0fa2","bits":64}"#;
        let exit =
            r#"{"t":9,"cpu":0,"level":2,"kind":"exit","vendor":"intel","rip":"0x4000","code":"0xa","name":"</script>CPUID"}"#;
        std::fs::write(&path, format!("{code}\n{exit}\n")).unwrap();
        let o = ReportOptions { trace: path.clone(), output: PathBuf::new(), title: None };
        let page = build(&o).unwrap();
        assert!(page.contains("\\u003c/script>CPUID") && page.contains("cpuid"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
        std::fs::write(&path, "nonsense\n").unwrap();
        assert!(matches!(build(&o), Err(Failure::Config { line: 1, .. })));
        let _ = std::fs::remove_file(path);
    }
}
