//! Initial RAM file systems for Linux guests.

/// A cpio archive in the "newc" format that Linux unpacks.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// The folders and device files of a small system, and busybox under the names of `applets`.
    pub fn busybox(busybox: &[u8], applets: &[&str]) -> Archive {
        let mut archive = Archive::default();
        for dir in ["bin", "dev", "proc", "sys", "tmp"] {
            archive.entry(dir, 0o040_755, &[], (0, 0));
        }
        archive.entry("bin/busybox", 0o100_755, busybox, (0, 0));
        for applet in applets {
            archive.entry(&format!("bin/{applet}"), 0o120_777, b"busybox", (0, 0));
        }
        archive.entry("dev/console", 0o020_600, &[], (5, 1));
        archive.entry("dev/null", 0o020_666, &[], (1, 3));
        archive.entry("dev/zero", 0o020_666, &[], (1, 5));
        archive
    }

    /// Append a file. `mode`: type and permissions as in `stat`; `device`: major and minor number of a device file.
    pub fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for f in fields {
            self.bytes.extend_from_slice(format!("{f:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}
