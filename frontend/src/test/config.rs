//! The format of kvm-unit-tests' `unittests.cfg`.

use std::path::Path;

use crate::error::Failure;
use crate::options::parse_size;

/// One test of a suite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub name: String,
    pub file: String,
    pub smp: Option<usize>,
    pub memory: Option<u64>,
    /// What follows the program's name on its command line.
    pub arguments: String,
    pub initrd: Option<String>,
    /// QEMU's `-cpu` value.
    pub cpu: Option<String>,
    pub arch: Option<String>,
    pub groups: Vec<String>,
    pub accel: Option<String>,
    /// Seconds; 0: no limit.
    pub timeout: Option<u64>,
    /// Conditions on the host's KVM, each `path=value`.
    pub checks: Vec<String>,
    /// QEMU's `-device` values.
    pub devices: Vec<String>,
    /// Other QEMU options, which have no meaning here.
    pub ignored: Vec<String>,
}

impl Entry {
    /// Whether it is a test of 64-bit processors.
    pub fn on_x86_64(&self) -> bool {
        !self.file.is_empty() && self.arch.as_deref().is_none_or(|a| a == "x86_64")
    }

    /// Whether the entry is in one of the comma-separated groups, or, with `-` in front, in none of them. Without --groups,
    /// everything is run.
    pub fn in_groups(&self, list: &str) -> bool {
        match list.strip_prefix('-') {
            Some(not) => !not.split(',').any(|g| self.groups.iter().any(|own| own == g.trim())),
            None => list.split(',').any(|g| self.groups.iter().any(|own| own == g.trim())),
        }
    }

    /// Why the test cannot be run here: a condition that is not fulfilled, or a device that there is not.
    pub fn unfit(&self) -> Option<String> {
        // Devices that a test can do without, or that are always there.
        let harmless = |d: &&String| ["isa-debug-exit", "pci-testdev", "virtio-"].iter().any(|h| d.starts_with(h));
        if let Some(device) = self.devices.iter().find(|d| !harmless(d)) {
            return Some(format!("there is no device {}", device.split(',').next().unwrap_or_default()));
        }
        let refused = self.checks.iter().find(|c| REFUSED.contains(&c.as_str()))?;
        Some(format!("not a host with {refused}"))
    }

    /// Whether the test wants a processor of AMD's.
    pub fn wants_amd(&self) -> bool {
        match &self.cpu {
            Some(cpu) => {
                cpu.contains("+svm") || cpu.contains("AuthenticAMD") || cpu.starts_with("Opteron") || cpu.starts_with("EPYC")
            }
            None => self.groups.iter().any(|g| g == "svm"),
        }
    }
}

/// Conditions that this host does not fulfil; any other stands for something that holds here.
const REFUSED: [&str; 1] = ["/sys/module/kvm/parameters/enable_vmware_backdoor=Y"];

/// Parse a configuration. `path` is for messages.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Failure> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((n, raw)) = lines.next() {
        let error = |why: String| Failure::Config { path: path.to_owned(), line: n + 1, why };
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or_else(|| error("a section name without ]".into()))?;
            entries.push(Entry { name: name.trim().to_owned(), ..Entry::default() });
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| error(format!("{line:?} is neither [name] nor key = value")))?;
        let mut value = value.trim().to_owned();
        if value.starts_with("\"\"\"") {
            // A value over several lines.
            value = value[3..].to_owned();
            while !value.contains("\"\"\"") {
                let Some((_, more)) = lines.next() else {
                    return Err(error("a value that begins with \"\"\" and never ends".into()));
                };
                value.push('\n');
                value.push_str(more);
            }
            value.truncate(value.find("\"\"\"").unwrap_or(value.len()));
            value = value.replace("\\\n", " ").replace('\n', " ");
        }
        let entry = entries.last_mut().ok_or_else(|| error("a value before the first [name]".into()))?;
        let bare = words(&value).join(" ");
        match key.trim() {
            "file" => entry.file = bare,
            "smp" => {
                // `$MAX_SMP` and the like: as many as is sensible.
                entry.smp = Some(bare.split(',').next().and_then(|n| n.parse().ok()).unwrap_or(4));
            }
            "arch" => entry.arch = Some(bare),
            "groups" => entry.groups = bare.split_whitespace().map(str::to_owned).collect(),
            "accel" => entry.accel = Some(bare),
            "timeout" => {
                let number = bare.trim_end_matches('s');
                entry.timeout = Some(number.parse().map_err(|_| error(format!("timeout {bare:?} is not a number")))?);
            }
            "test_args" => entry.arguments = bare,
            "check" => entry.checks = bare.split_whitespace().map(str::to_owned).collect(),
            "extra_params" | "qemu_params" => parameters(entry, &value),
            // Keys of other suites.
            _ => {}
        }
    }
    Ok(entries)
}

/// Split as a shell does: quotes group, backslash escapes; a back-quoted command becomes 1.
pub fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut word = String::new();
    let mut any = false;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.push(c),
            (_, '\\') => word.extend(chars.next()),
            (_, '`') => {
                chars.by_ref().take_while(|&c| c != '`').for_each(drop);
                word.push('1');
                any = true;
            }
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, any) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if any || !word.is_empty() {
                    out.push(std::mem::take(&mut word));
                    any = false;
                }
            }
            (None, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        out.push(word);
    }
    out
}

/// QEMU's options.
fn parameters(entry: &mut Entry, text: &str) {
    let mut words = words(text).into_iter();
    while let Some(word) = words.next() {
        let name = word.trim_start_matches('-').to_owned();
        match name.as_str() {
            "cpu" => entry.cpu = words.next(),
            "m" => entry.memory = words.next().and_then(|m| parse_size(m.strip_prefix("size=").unwrap_or(&m)).ok()),
            "smp" => entry.smp = words.next().and_then(|n| n.split(',').next()?.parse().ok()).or(entry.smp),
            "append" => entry.arguments = words.next().unwrap_or_default(),
            "initrd" => entry.initrd = words.next(),
            "device" => entry.devices.extend(words.next()),
            "machine" | "M" | "overcommit" | "global" | "object" | "chardev" | "netdev" | "net" | "serial" | "display"
            | "accel" | "drive" | "kernel" | "monitor" | "fw_cfg" | "rtc" => {
                entry.ignored.push(format!("{word} {}", words.next().unwrap_or_default()));
            }
            _ => entry.ignored.push(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Entry> {
        parse(Path::new("unittests.cfg"), text).unwrap()
    }

    #[test]
    fn old_and_new_names_say_the_same() {
        let new = read(
            "[a]\nfile = vmx.flat\nsmp = 2\ntest_args = \"-x ept_access*\"\nqemu_params = -cpu max,+vmx -m 2048\narch = x86_64\n\
             groups = vmx nested\ntimeout = 90\n",
        );
        let old = read(
            "# comment\n[a]\nfile = vmx.flat\nsmp = 2\nextra_params = -cpu max,+vmx -m 2048 -append \"-x ept_access*\"\n\
             arch = x86_64\ngroups = vmx nested\ntimeout = 90\n",
        );
        assert_eq!(new, old);
        assert_eq!(new[0].arguments, "-x ept_access*");
        assert_eq!(new[0].memory, Some(2048 << 20));
        assert!(new[0].on_x86_64() && new[0].in_groups("nested,x") && !new[0].in_groups("-vmx") && !new[0].wants_amd());
    }

    #[test]
    fn odd_corners() {
        let entries = read(
            "[t]\nfile = tsc.flat\ntest_args = \"10000000 `date +%s`\"\n[s]\nfile=svm.flat\nqemu_params = -cpu max,+svm -m 4g\n\
             extra = 1\n[i]\nfile = x.flat\narch = i386\n[m]\nfile = y.flat\nqemu_params = \"\"\"-m 1g \\\n-cpu host\"\"\"\n",
        );
        assert_eq!(entries[0].arguments, "10000000 1");
        assert!(entries[1].wants_amd());
        assert_eq!(entries[1].memory, Some(4 << 30));
        assert!(!entries[2].on_x86_64());
        assert_eq!((entries[3].memory, entries[3].cpu.as_deref()), (Some(1 << 30), Some("host")));
    }

    #[test]
    fn what_is_not_run() {
        let unfit = |text: &str| read(&format!("[a]\nfile = a.flat\n{text}\n"))[0].unfit();
        assert_eq!(
            unfit("qemu_params = -M q35 -device intel-iommu,eim=off -device edu").unwrap(),
            "there is no device intel-iommu"
        );
        assert_eq!(unfit("qemu_params = -device pci-testdev"), None);
        assert!(unfit("check = /sys/module/kvm/parameters/enable_vmware_backdoor=Y").is_some());
        assert_eq!(unfit("check = /sys/module/kvm_intel/parameters/allow_smaller_maxphyaddr=Y"), None);
    }

    #[test]
    fn errors_name_the_line() {
        let error = parse(Path::new("u.cfg"), "[a]\nnonsense\n").unwrap_err().to_string();
        assert!(error.starts_with("u.cfg:2:"), "{error}");
        assert!(parse(Path::new("u.cfg"), "file = x\n").is_err());
        assert!(parse(Path::new("u.cfg"), "[a\n").is_err());
    }
}
