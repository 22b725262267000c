use super::*;
use imago::FormatCreateBuilder;
use imago::storage::StorageCreateOptions;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("undervisor-disk-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    fn file(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, data).unwrap();
        path
    }
    fn qcow2(&self, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
        let path = self.0.join(name);
        let _ = std::fs::remove_file(&path);
        let options = StorageCreateOptions::new().filename(&path);
        let file = File::create_open(options).unwrap();
        let mut builder = Qcow2::<File>::create_builder(file).size(1 << 20);
        if let Some((file, format)) = backing {
            builder = builder.backing(file.into(), format.into());
        }
        builder.create().unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn raw_reads_and_writes() {
    let folder = Folder::new("raw");
    let path = folder.file("d.raw", &[7; 4096]);
    let mut disk = open(&path, false).unwrap();
    assert_eq!(disk.size(), 4096);
    disk.write(512, &[9; 512]).unwrap();
    disk.flush().unwrap();
    let mut out = [0; 1024];
    disk.read(0, &mut out).unwrap();
    assert!(out[..512].iter().all(|&b| b == 7) && out[512..].iter().all(|&b| b == 9));
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap()[512], 9);
}

#[test]
fn qcow2_reads_through_its_backing_file() {
    let folder = Folder::new("qcow2");
    folder.file("base.raw", &vec![3; 1 << 20]);
    let path = folder.qcow2("top.qcow2", Some(("base.raw", "raw")));
    let mut disk = open(&path, false).unwrap();
    disk.write(65536, &[5; 512]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let mut disk = open(&path, true).unwrap();
    let mut out = [0; 512];
    disk.read(65536, &mut out).unwrap();
    assert_eq!(out, [5; 512]);
    disk.read(0, &mut out).unwrap();
    assert_eq!(out, [3; 512]);
    assert_eq!(std::fs::read(folder.0.join("base.raw")).unwrap()[65536], 3);
}

#[test]
fn a_backing_loop_is_named() {
    let folder = Folder::new("loop");
    folder.qcow2("b.qcow2", None);
    let a = folder.qcow2("a.qcow2", Some(("b.qcow2", "qcow2")));
    folder.qcow2("b.qcow2", Some(("a.qcow2", "qcow2")));
    match open(&a, true) {
        Err(DiskError::BackingLoop { again, .. }) => assert!(again.ends_with("a.qcow2"), "{again:?}"),
        other => panic!("{:?}", other.map(|d| d.size())),
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let folder = Folder::new("errors");
    let text = |r: Result<ImageDisk, DiskError>| r.map(|d| d.size()).unwrap_err().to_string();
    let missing = text(open(&folder.0.join("missing.img"), true));
    assert!(missing.contains("missing.img"), "{missing}");
    assert!(text(open(&folder.file("empty.img", &[]), true)).contains("empty"));
    assert!(text(open(&folder.file("uneven.img", &[1; 1000]), true)).contains("multiple of 512"));
    assert!(text(open(&folder.0, true)).contains("directory"));
    let whole = folder.qcow2("whole.qcow2", None);
    let cut = std::fs::read(whole).unwrap()[..64].to_vec();
    assert!(text(open(&folder.file("cut.qcow2", &cut), true)).contains("cut.qcow2"));
    let orphan = folder.qcow2("orphan.qcow2", Some(("gone.raw", "raw")));
    assert!(text(open(&orphan, true)).contains("orphan.qcow2"));
}

/// Found by fuzzing: the first write recursed without end.
#[test]
fn an_image_that_does_not_count_its_header_is_only_read() {
    let folder = Folder::new("uncounted");
    let path = folder.qcow2("uncounted", None);
    let mut bytes = std::fs::read(&path).unwrap();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    bytes[table..table + 8].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let message = open(&path, false).err().unwrap().to_string();
    assert!(message.contains("qemu-img check"), "{message}");
    assert!(open(&path, true).is_ok());
}
