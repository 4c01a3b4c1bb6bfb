// The real libtdb behind plain C functions, for TinyCC (bun:ffi's cc), which needs neither headers nor a compiler installed.
// TDB_DATA is a 16 byte structure of two integers: the x86-64 ABI passes it as two arguments, as written here.
typedef unsigned long size_t;
typedef unsigned char u8;
extern void *dlopen(const char *, int);
extern void *dlsym(void *, const char *);
extern void *memcpy(void *, const void *, size_t);

typedef int (*visit_fn)(void *, const u8 *, size_t, const u8 *, size_t, void *);
static void *(*p_open)(const char *, int, int, int, unsigned);
static int (*p_close)(void *);
static int (*p_store)(void *, const u8 *, size_t, const u8 *, size_t, int);
static int (*p_append)(void *, const u8 *, size_t, const u8 *, size_t);
static int (*p_delete)(void *, const u8 *, size_t);
static int (*p_exists)(void *, const u8 *, size_t);
static int (*p_parse)(void *, const u8 *, size_t, int (*)(const u8 *, size_t, const u8 *, size_t, void *), void *);
static int (*p_chainlock)(void *, const u8 *, size_t);
static int (*p_chainlock_nonblock)(void *, const u8 *, size_t);
static int (*p_chainunlock)(void *, const u8 *, size_t);
static int (*p_traverse_read)(void *, visit_fn, void *);
static int (*p_traverse)(void *, visit_fn, void *);
static int (*p_lockall)(void *), (*p_lockall_read)(void *), (*p_unlockall)(void *), (*p_unlockall_read)(void *);
static int (*p_lockall_nonblock)(void *);
static int (*p_start)(void *), (*p_prepare)(void *), (*p_commit)(void *), (*p_cancel)(void *);
static int (*p_check)(void *, void *, void *);
static int (*p_wipe)(void *), (*p_repack)(void *), (*p_seqnum)(void *), (*p_freelist)(void *), (*p_error)(void *);
static void (*p_max_dead)(void *, int);
static size_t (*p_map_size)(void *);
static int (*p_hash_size)(void *);

int d_init(void)
{
	void *h = dlopen("libtdb.so.1", 2);
	if (!h) return -1;
	p_open = dlsym(h, "tdb_open"); p_close = dlsym(h, "tdb_close"); p_store = dlsym(h, "tdb_store");
	p_append = dlsym(h, "tdb_append"); p_delete = dlsym(h, "tdb_delete"); p_exists = dlsym(h, "tdb_exists");
	p_parse = dlsym(h, "tdb_parse_record"); p_chainlock = dlsym(h, "tdb_chainlock");
	p_chainlock_nonblock = dlsym(h, "tdb_chainlock_nonblock"); p_chainunlock = dlsym(h, "tdb_chainunlock");
	p_traverse_read = dlsym(h, "tdb_traverse_read"); p_traverse = dlsym(h, "tdb_traverse");
	p_lockall = dlsym(h, "tdb_lockall"); p_lockall_read = dlsym(h, "tdb_lockall_read");
	p_lockall_nonblock = dlsym(h, "tdb_lockall_nonblock");
	p_unlockall = dlsym(h, "tdb_unlockall"); p_unlockall_read = dlsym(h, "tdb_unlockall_read");
	p_start = dlsym(h, "tdb_transaction_start"); p_prepare = dlsym(h, "tdb_transaction_prepare_commit");
	p_commit = dlsym(h, "tdb_transaction_commit"); p_cancel = dlsym(h, "tdb_transaction_cancel");
	p_check = dlsym(h, "tdb_check"); p_wipe = dlsym(h, "tdb_wipe_all"); p_repack = dlsym(h, "tdb_repack");
	p_seqnum = dlsym(h, "tdb_get_seqnum"); p_freelist = dlsym(h, "tdb_freelist_size"); p_error = dlsym(h, "tdb_error");
	p_max_dead = dlsym(h, "tdb_set_max_dead"); p_map_size = dlsym(h, "tdb_map_size"); p_hash_size = dlsym(h, "tdb_hash_size");
	return 0;
}

void *d_open(const char *name, int hash_size, int flags, int open_flags) { return p_open(name, hash_size, flags, open_flags, 0600); }
int d_close(void *t) { return p_close(t); }
int d_store(void *t, const u8 *k, int kl, const u8 *d, int dl, int mode) { return p_store(t, k, kl, d, dl, mode); }
int d_append(void *t, const u8 *k, int kl, const u8 *d, int dl) { return p_append(t, k, kl, d, dl); }
int d_delete(void *t, const u8 *k, int kl) { return p_delete(t, k, kl); }
int d_exists(void *t, const u8 *k, int kl) { return p_exists(t, k, kl); }
int d_chainlock(void *t, const u8 *k, int kl) { return p_chainlock(t, k, kl); }
int d_chainlock_nonblock(void *t, const u8 *k, int kl) { return p_chainlock_nonblock(t, k, kl); }
int d_chainunlock(void *t, const u8 *k, int kl) { return p_chainunlock(t, k, kl); }

struct out { u8 *at; size_t left; int count; };
static int copy_data(const u8 *k, size_t kl, const u8 *d, size_t dl, void *private)
{
	struct out *out = private;
	if (dl > out->left) return -2;
	memcpy(out->at, d, dl);
	out->count = (int)dl;
	return 0;
}
// Length of the data copied to `to`, -1 when there is no such record.
int d_fetch(void *t, const u8 *k, int kl, u8 *to, int room)
{
	struct out out;
	out.at = to; out.left = room; out.count = -1;
	p_parse(t, k, kl, copy_data, &out);
	return out.count;
}

static int collect(void *t, const u8 *k, size_t kl, const u8 *d, size_t dl, void *private)
{
	struct out *out = private;
	unsigned head[2];
	if (kl + dl + 8 > out->left) return 1;
	head[0] = kl; head[1] = dl;
	memcpy(out->at, head, 8);
	memcpy(out->at + 8, k, kl);
	memcpy(out->at + 8 + kl, d, dl);
	out->at += 8 + kl + dl;
	out->left -= 8 + kl + dl;
	return 0;
}
// All records as {u32 key length, u32 data length, key, data}; returns traverse_read's result.
int d_traverse_read(void *t, u8 *to, int room)
{
	struct out out;
	out.at = to; out.left = room; out.count = 0;
	return p_traverse_read(t, collect, &out);
}
int d_count(void *t) { return p_traverse_read(t, (visit_fn)0, (void *)0); }

int d_lockall(void *t) { return p_lockall(t); }
int d_lockall_nonblock(void *t) { return p_lockall_nonblock(t); }
int d_unlockall(void *t) { return p_unlockall(t); }
int d_lockall_read(void *t) { return p_lockall_read(t); }
int d_unlockall_read(void *t) { return p_unlockall_read(t); }
int d_start(void *t) { return p_start(t); }
int d_prepare(void *t) { return p_prepare(t); }
int d_commit(void *t) { return p_commit(t); }
int d_cancel(void *t) { return p_cancel(t); }
int d_check(void *t) { return p_check(t, (void *)0, (void *)0); }
int d_wipe(void *t) { return p_wipe(t); }
int d_repack(void *t) { return p_repack(t); }
int d_seqnum(void *t) { return p_seqnum(t); }
int d_freelist_size(void *t) { return p_freelist(t); }
int d_error(void *t) { return p_error(t); }
void d_set_max_dead(void *t, int max_dead) { p_max_dead(t, max_dead); }
int d_hash_size(void *t) { return p_hash_size(t); }
