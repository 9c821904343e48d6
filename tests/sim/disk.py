"""A disk under the real code: it can lose what was not synced, run full, fail and die.

SQLite reaches files through a table of functions, its VFS. Here that table is copied and
four functions in it are replaced: write, truncate, sync and delete first come here, and are
then done by SQLite's own code on a real file, which plays the page cache. Everything else
(locks, shared memory, reading) is SQLite's own. Of what Python's `os` does with files, the
functions that the books use come here in the same way.

Beside the real files stands what would be there after a power cut: what was synced, and
of the rest any part, torn anywhere between two sectors. Names made, moved and removed are
so for good when their folder is synced, and are lost from the last one backwards. A sync
that failed persists nothing for certain and is not made good by the next.
"""

import _sqlite3
import contextlib
import ctypes
import errno
import functools
import os
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
OK = 0
IOERR = 10
IOERR_WRITE = 778
IOERR_FSYNC = 1034
FULL = 13
CANTOPEN = 14


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at a place of a file; `data` None cuts the file there."""

    offset: int
    data: bytes | None


@dataclass(slots=True, eq=False)
class Inode:
    """One file, whatever its name: what is surely on disk, and what may be besides."""

    durable: bytearray = field(default_factory=bytearray)
    loose: list[Write] = field(default_factory=list)
    """Written and not synced, in order."""

    def whole(self):
        """Return the file with all that was written."""
        image = bytearray(self.durable)
        for write in self.loose:
            apply(image, write)
        return bytes(image)


class Folder:
    """The files of one folder, as they are and as a power cut may leave them."""

    def __init__(self, files=()):
        self.names = {name: Inode(bytearray(content)) for name, content in dict(files).items()}
        self._on_disk = dict(self.names)
        self._loose = []
        """Names made, moved and removed since the folder was synced: (before, after, inode)."""

    def make(self, name):
        if name not in self.names:
            inode = self.names[name] = Inode()
            self._loose.append((None, name, inode))

    def remove(self, name):
        if (inode := self.names.pop(name, None)) is not None:
            self._loose.append((name, None, inode))

    def move(self, before, after):
        inode = self.names.pop(before)
        self.names[after] = inode
        self._loose.append((before, after, inode))

    def write(self, name, write):
        self.make(name)
        self.names[name].loose.append(write)

    def sync(self, name):
        inode = self.names[name]
        for write in inode.loose:
            apply(inode.durable, write)
        inode.loose.clear()

    def fail_to_sync(self, name):
        """Nobody knows which of it got there, and the system takes it all for written."""
        inode = self.names[name]
        for write in inode.loose[::2]:
            apply(inode.durable, write)
        inode.loose.clear()

    def sync_names(self):
        self._on_disk = dict(self.names)
        self._loose.clear()

    def left(self, chance, how="part"):
        """Return what a power cut leaves: `none`, `all` or any `part` of what was not synced."""
        names = dict(self._on_disk)
        kept = {"none": 0, "all": len(self._loose)}.get(how, chance.randint(0, len(self._loose)))
        for before, after, inode in self._loose[:kept]:
            names.pop(before, None)
            if after is not None:
                names[after] = inode
        reading = {"none": lambda inode: bytes(inode.durable), "all": Inode.whole}.get(
            how, lambda inode: torn(inode, chance)
        )
        return {name: reading(inode) for name, inode in names.items()}


class Disk:
    """The files in one real folder. `before(what, name)` may name an error instead of OK.

    `log`, where given, is told of everything that succeeds: (what, name, more).
    """

    def __init__(self, folder, *, before=None, log=None):
        self.folder = Path(folder).resolve()
        self.before = before
        self.log = log
        self.dead = False
        self.journals = set()
        """Journals that SQLite has made: it syncs the folder with the first sync of each."""
        self.files = Folder(self.after_kill())
        _shim().watch(self)

    def close(self):
        """Forget the folder: from here on its files are ordinary ones."""
        self.dead = True
        _shim().leave(self)

    def after_kill(self):
        """Return what a process killed now leaves: all that it has written."""
        return {
            path.name: path.read_bytes()
            for path in sorted(self.folder.iterdir())
            if path.is_file() and not path.name.endswith(("-shm", ".lock"))
        }

    def after_power_cut(self, chance):
        """Return what is left when the power goes now; `chance` chooses among what may be."""
        return self.files.left(chance)

    # -- what is done to it ----------------------------------------------------------------

    def may(self, what, name):
        if self.dead:
            return IOERR
        refused = OK if self.before is None else self.before(what, name)
        return IOERR if self.dead else refused

    def did(self, what, name, more=None):
        perform(self.files, what, name, more)
        if self.log is not None:
            self.log(what, name, more)
        if what == "sync" and name in self.journals:
            self.journals.discard(name)
            self.did("folder", "")


def perform(files, what, name, more):
    """Do to a `Folder` what was done to the real one."""
    if what == "write":
        files.write(name, more)
    elif what == "sync":
        files.sync(name)
    elif what == "folder":
        files.sync_names()
    elif what == "make":
        files.make(name)
    elif what == "delete":
        files.remove(name)
    else:
        assert what == "move"
        files.move(name, more)


def restore(folder, files):
    """Put files into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def apply(image, write):
    """Do one write to the bytes of a file."""
    if write.data is None:
        del image[write.offset :]
        return
    if write.offset > len(image):
        image.extend(bytes(write.offset - len(image)))
    image[write.offset : write.offset + len(write.data)] = write.data


def torn(inode, chance):
    """Return a file after a power cut: of what was not synced all, none, or any part.

    Whole sectors reach the disk or do not, in any order.
    """
    image = bytearray(inode.durable)
    keep = chance.choice((0.0, 1.0, 0.5, chance.random()))
    for write in inode.loose:
        if write.data is None or keep in (0.0, 1.0):
            if chance.random() < keep:
                apply(image, write)
            continue
        end = write.offset + len(write.data)
        for sector in range(write.offset - write.offset % SECTOR, end, SECTOR):
            if chance.random() < keep:
                first, last = max(sector, write.offset), min(sector + SECTOR, end)
                part = write.data[first - write.offset : last - write.offset]
                apply(image, Write(first, part))
    return bytes(image)


# -- between SQLite and its files ------------------------------------------------------------

_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("path_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("app_data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        *((f"other{number}", c_void_p) for number in range(14)),
    )


class _Methods(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        *((f"other{number}", c_void_p) for number in range(13)),
    )


class _File(ctypes.Structure):
    _fields_ = (("methods", POINTER(_Methods)),)


class _Shim:
    """Stands before SQLite's own VFS and before `os`, as long as there is any `Disk`."""

    def __init__(self):
        self._disks = {}
        self._files = {}
        self._tables = {}
        self._os = _Os(self)
        library = ctypes.CDLL(_sqlite3.__file__)
        find, self._register = library.sqlite3_vfs_find, library.sqlite3_vfs_register
        find.restype, find.argtypes = POINTER(_Vfs), (c_char_p,)
        self._register.restype, self._register.argtypes = c_int, (POINTER(_Vfs), c_int)
        self._own = find(None)
        self._open = _OPEN(self._own.contents.open)
        self._delete = _DELETE(self._own.contents.delete)
        self._callbacks = (_OPEN(self._on_open), _DELETE(self._on_delete))
        self._vfs = _Vfs()
        ctypes.pointer(self._vfs)[0] = self._own.contents
        self._vfs.next = None
        self._vfs.name = b"qcsim"
        self._vfs.open = ctypes.cast(self._callbacks[0], c_void_p)
        self._vfs.delete = ctypes.cast(self._callbacks[1], c_void_p)

    def watch(self, disk):
        if not self._disks:
            self._register(ctypes.byref(self._vfs), 1)
            self._os.replace()
        self._disks[str(disk.folder)] = disk

    def leave(self, disk):
        if self._disks.pop(str(disk.folder), None) is not None and not self._disks:
            self._os.put_back()
            self._register(self._own, 1)

    def disk_of(self, path):
        folder, _, name = path.rpartition("/")
        return self._disks.get(folder), name

    def _on_open(self, _vfs, name, file, flags, out):
        disk, path, short = None, None, ""
        if name is not None:
            path = os.fsdecode(ctypes.string_at(name))
            disk, short = self.disk_of(path)
        new = disk is not None and not os.path.exists(path)  # noqa: PTH110  # called for each open
        if disk is not None and (disk.dead or (new and disk.may("make", short) != OK)):
            return CANTOPEN
        code = self._open(ctypes.addressof(self._own.contents), name, file, flags, out)
        if code == OK and disk is not None:
            if new and os.path.exists(path):  # noqa: PTH110
                disk.did("make", short)
                if short.endswith(("-journal", "-wal")):
                    disk.journals.add(short)
            opened = ctypes.cast(file, POINTER(_File)).contents
            table = self._table(opened.methods)
            self._files[file] = (disk, short)
            opened.methods = ctypes.pointer(table.methods)
        return code

    def _on_delete(self, _vfs, path, sync_folder):
        disk, name = self.disk_of(os.fsdecode(path))
        if disk is not None and (code := disk.may("delete", name)) != OK:
            return code
        code = self._delete(ctypes.addressof(self._own.contents), path, sync_folder)
        if disk is not None and code == OK:
            disk.did("delete", name)
            if sync_folder:
                disk.did("folder", "")
        return code

    def _table(self, methods):
        address = ctypes.addressof(methods.contents)
        if address not in self._tables:
            self._tables[address] = _Table(methods.contents, self._files)
        return self._tables[address]


class _Table:
    """One of SQLite's tables of functions for files, with ours in it."""

    def __init__(self, own, files):
        self._files = files
        self._close = _CLOSE(own.close)
        self._write = _WRITE(own.write)
        self._truncate = _TRUNCATE(own.truncate)
        self.methods = _Methods()
        ctypes.pointer(self.methods)[0] = own
        self._callbacks = (
            _CLOSE(self._on_close),
            _WRITE(self._on_write),
            _TRUNCATE(self._on_truncate),
            _SYNC(self._on_sync),
        )
        for name, callback in zip(
            ("close", "write", "truncate", "sync"), self._callbacks, strict=True
        ):
            setattr(self.methods, name, ctypes.cast(callback, c_void_p))

    def _on_close(self, file):
        del self._files[file]
        return self._close(file)

    def _on_write(self, file, data, size, offset):
        disk, name = self._files[file]
        code = disk.may("write", name)
        if code == OK:
            code = self._write(file, data, size, offset)
        if code == OK:
            disk.did("write", name, Write(offset, ctypes.string_at(data, size)))
        return code

    def _on_truncate(self, file, size):
        disk, name = self._files[file]
        code = disk.may("truncate", name)
        if code == OK:
            code = self._truncate(file, size)
        if code == OK:
            disk.did("write", name, Write(size, None))
        return code

    def _on_sync(self, file, _flags):
        # Nothing is really synced: the model says what a power cut leaves.
        disk, name = self._files[file]
        code = disk.may("sync", name)
        if code == OK:
            disk.did("sync", name)
        elif not disk.dead:
            disk.files.fail_to_sync(name)
        return code


class _Os:
    """Stand-ins for the functions of `os` that the books use on files of their own."""

    def __init__(self, shim):
        self._shim = shim
        self._own = {}

    def replace(self):
        for name in ("open", "write", "pwrite", "fsync", "rename", "replace", "unlink"):
            self._own[name] = getattr(os, name)
            stand_in = functools.partial(getattr(self, f"_{name}"), self._own[name])
            setattr(os, name, stand_in)

    def put_back(self):
        for name, own in self._own.items():
            setattr(os, name, own)

    def _at(self, path):
        if isinstance(path, int):
            try:
                path = str(Path(f"/proc/self/fd/{path}").readlink())
            except OSError:
                return None, ""
        return self._shim.disk_of(os.fsdecode(path))

    def _open(self, own, path, flags, *more, **named):
        disk, name = self._at(path)
        if disk is None or name.endswith((".lock", "-shm")) or not flags & os.O_CREAT:
            return own(path, flags, *more, **named)
        if not flags & os.O_TRUNC and name in disk.files.names:
            return own(path, flags, *more, **named)
        _ask(disk, "make", name)
        new = name not in disk.files.names
        opened = own(path, flags, *more, **named)
        disk.did(*(("make", name) if new else ("write", name, Write(0, None))))
        return opened

    def _write(self, own, descriptor, data):
        disk, name = self._at(descriptor)
        if disk is None:
            return own(descriptor, data)
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        _ask(disk, "write", name)
        written = own(descriptor, data)
        disk.did("write", name, Write(at, bytes(data[:written])))
        return written

    def _pwrite(self, own, descriptor, data, at):
        disk, name = self._at(descriptor)
        if disk is not None:
            _ask(disk, "write", name)
        written = own(descriptor, data, at)
        if disk is not None:
            disk.did("write", name, Write(at, bytes(data[:written])))
        return written

    def _fsync(self, own, file):
        number = file if isinstance(file, int) else file.fileno()
        whole, _name = self._at(f"{Path(f'/proc/self/fd/{number}').readlink()}/")
        disk, name = self._at(number) if whole is None else (whole, "")
        if disk is None:
            own(file)
            return
        try:
            _ask(disk, "sync", name)
        except OSError:
            if name and not disk.dead:
                disk.files.fail_to_sync(name)
            raise
        if name and name not in disk.files.names:
            # Written through a Python file, which nobody here saw.
            disk.did("make", name)
            disk.did("write", name, Write(0, (disk.folder / name).read_bytes()))
        disk.did("sync" if name else "folder", name)

    def _rename(self, own, before, after, **named):
        disk, name = self._at(before)
        if disk is not None:
            _ask(disk, "move", name)
        own(before, after, **named)
        if disk is not None:
            disk.did("move", name, self._at(after)[1])

    _replace = _rename

    def _unlink(self, own, path, **named):
        disk, name = self._at(path)
        if disk is not None and name in disk.files.names:
            _ask(disk, "delete", name)
        own(path, **named)
        if disk is not None:
            disk.did("delete", name)


def _ask(disk, what, name):
    code = disk.may(what, name)
    if code != OK:
        number = errno.ENOSPC if code == FULL else errno.EIO
        raise OSError(number, os.strerror(number), name)


@contextlib.contextmanager
def watched(folder, **how):
    """Have a folder on a simulated disk for a while."""
    disk = Disk(folder, **how)
    try:
        yield disk
    finally:
        disk.close()


@functools.cache
def _shim():
    return _Shim()
