use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;

use super::*;

fn file(len: u64) -> File {
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    File::from(fd)
}

fn spec(guest: u64, size: u64, user: u64, offset: u64) -> RegionSpec {
    RegionSpec { guest, size, user, offset }
}

#[test]
fn windows_hold_what_lies_in_them_whole() {
    let memory = GuestMemory::new([(spec(0x1000, 0x2000, 0x7000_0000, 0), file(0x2000))]).unwrap();
    let window = memory.window(0x1000).unwrap();
    let start = window.get(0x1000, 1).unwrap();
    assert_eq!(window.get(0x2fff, 1).unwrap().addr(), start.addr() + 0x1fff);
    assert!(window.get(0x1000, 0x2000).is_some());
    for (guest, len) in [
        (0x1000, 0x2001),
        (0xfff, 1),
        (0xfff, 2),
        (0x3000, 0),
        (0x3000, 1),
        (0x2fff, 2),
        (0, 1),
        (u64::MAX, 1),
        (0x2000, u32::MAX),
    ] {
        assert!(window.get(guest, len).is_none(), "{guest:#x}, {len}");
    }
    assert!(memory.window(0xfff).is_none());
    assert!(memory.window(0x3000).is_none());
    assert!(memory.window(u64::MAX).is_none());
}

#[test]
fn user_ranges_lie_in_one_region() {
    let memory = GuestMemory::new([
        (spec(0, 0x2000, 0x10_0000, 0), file(0x2000)),
        (spec(0x2000, 0x2000, 0x10_2000, 0), file(0x2000)),
    ])
    .unwrap();
    assert!(memory.user_range(0x10_0000, 0x2000).is_some());
    assert!(memory.user_range(0x10_3fff, 1).is_some());
    for (user, len) in [
        (0x10_0000, 0x2001),
        (0x10_1fff, 2),
        (0x10_4000, 1),
        (0xf_ffff, 1),
        (u64::MAX, 2),
        (0x10_0001, u64::MAX),
    ] {
        assert!(memory.user_range(user, len).is_none(), "{user:#x}, {len:#x}");
    }
}

#[test]
fn an_offset_that_is_no_page_is_mapped_from_the_page_before() {
    use std::os::unix::fs::FileExt;
    let f = file(0x4000);
    f.write_all_at(b"here", 0x1234).unwrap();
    let memory = GuestMemory::new([(spec(0, 0x1000, 0, 0x1234), f)]).unwrap();
    let at = memory.window(0).unwrap().get(0, 4).unwrap();
    // SAFETY: four bytes of the mapping, which the test's own file backs.
    assert_eq!(&unsafe { at.cast::<[u8; 4]>().read() }, b"here");
}

#[test]
fn a_mapping_goes_when_the_last_who_can_reach_it_does() {
    let f = file(0x1000);
    let inode = rustix::fs::fstat(&f).unwrap().st_ino;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|l| l.split_whitespace().nth(4) == Some(&inode.to_string())).count()
    };
    let one = GuestMemory::new([(spec(0, 0x1000, 0, 0), f)]).unwrap();
    let two = one.with(spec(0x1000, 0x1000, 0x1000, 0), &file(0x1000)).unwrap();
    assert_eq!(mapped(), 1, "the tables share the mapping");
    drop(one);
    assert_eq!(mapped(), 1);
    let none = two.without(spec(0, 0x1000, 0, 99)).unwrap();
    drop(two);
    assert_eq!(mapped(), 0);
    assert!(none.without(spec(0, 0x1000, 0, 0)).is_err());
    assert_eq!(none.specs().count(), 1);
}

#[test]
fn a_region_that_was_added_twice_is_removed_twice() {
    let f = file(0x1000);
    let region = spec(0, 0x1000, 0, 0);
    let once = GuestMemory::default().with(region, &f).unwrap();
    let twice = once.with(region, &f).unwrap();
    assert_eq!(twice.specs().count(), 1);
    assert!(twice.with(region, &file(0x1000)).is_err(), "another file");
    assert!(twice.with(spec(0, 0x1000, 0x5000, 0), &f).is_err(), "another place");
    let once = twice.without(region).unwrap();
    assert_eq!(once.specs().count(), 1);
    let none = once.without(region).unwrap();
    assert_eq!(none.specs().count(), 0);
    assert!(none.without(region).is_err());
}

#[test]
fn a_truncated_file_reads_as_zeros_and_poisons_its_own_table_only() {
    let (f, g) = (file(0x4000), file(0x4000));
    let keep = f.try_clone().unwrap();
    let lost = GuestMemory::new([(spec(0, 0x4000, 0, 0), f)]).unwrap();
    let kept = GuestMemory::new([(spec(0, 0x4000, 0, 0), g)]).unwrap();
    let at = lost.window(0x3000).unwrap().get(0x3000, 8).unwrap();
    let other = kept.window(0x3000).unwrap().get(0x3000, 8).unwrap();
    // SAFETY: eight bytes of each mapping; reading after the truncation is what is tested.
    unsafe {
        at.cast::<u64>().write_volatile(7);
        other.cast::<u64>().write_volatile(7);
        let before = sigbus::faults();
        rustix::fs::ftruncate(keep.as_fd(), 0).unwrap();
        assert_eq!(at.cast::<u64>().read_volatile(), 0);
        at.cast::<u64>().write_volatile(8);
        assert_eq!(at.cast::<u64>().read_volatile(), 8, "it is memory of our own now");
        assert_eq!(other.cast::<u64>().read_volatile(), 7);
        assert!(sigbus::faults() > before);
    }
    assert!(lost.poisoned());
    assert!(!kept.poisoned());
}

/// Tables are made, faulted and dropped by several threads at a time: each fault finds its own mapping.
#[test]
fn faults_of_several_threads_find_their_mappings() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let f = file(0x2000);
                    let keep = f.try_clone().unwrap();
                    let memory = GuestMemory::new([(spec(0, 0x2000, 0, 0), f)]).unwrap();
                    let at = memory.window(0x1000).unwrap().get(0x1000, 1).unwrap();
                    rustix::fs::ftruncate(&keep, 0x1000).unwrap();
                    // SAFETY: one byte of the mapping; its page is gone, which is what is tested.
                    assert_eq!(unsafe { at.read_volatile() }, 0);
                    assert!(memory.poisoned());
                }
            });
        }
    });
}
