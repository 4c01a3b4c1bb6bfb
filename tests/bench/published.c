/* The stock load generators' algorithms (load-generators.md 2 to 9, client-library.md 10, 12, 14, 16, 19) in C on libtdb, as thin as they get: the
 * yardstick for the clients of `ctdb bench`, and somebody for them to start together with. Options and output are the stock programs'; three loads
 * that have no stock program (many records, controls, traverse) do what the stock client library does for them.
 *
 *   published fetch_loop          -s SOCKET -t SECONDS -n NODES
 *   published fetch_loop_key      -s SOCKET -t SECONDS -D DATABASE -k KEY          Locks:N every second
 *   published fetch_ring          -s SOCKET -t SECONDS -n NODES -D DATABASE -k KEY
 *   published fetch_readonly_loop -s SOCKET -t SECONDS -n NODES -D DATABASE -k KEY [-r WRITES_PER_SECOND]   the writer is on node 0
 *   published g_lock_loop         -s SOCKET -t SECONDS -n NODES
 *   published transaction_loop    -s SOCKET -t SECONDS -n NODES -D DATABASE -k KEY -T persistent|replicated
 *   published message_ring        -s SOCKET -t SECONDS -n NODES [-q MESSAGES_EACH_WAY]
 *   published spread              -s SOCKET -t SECONDS -D DATABASE -k KEY -c RECORDS
 *   published control             -s SOCKET -t SECONDS
 *   published traverse            -s SOCKET -D DATABASE
 *
 * -w MS: a line `Sample:SECONDS:COUNT` every MS milliseconds, with the operations of this process so far.
 *
 * cc -O2 -o published published.c -ldl
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef struct { unsigned char *dptr; size_t dsize; } TDB_DATA;
typedef struct tdb_context TDB;
static TDB *(*p_open)(const char *, int, int, int, mode_t);
static TDB_DATA (*p_fetch)(TDB *, TDB_DATA);
static int (*p_lock)(TDB *, TDB_DATA), (*p_unlock)(TDB *, TDB_DATA), (*p_store)(TDB *, TDB_DATA, TDB_DATA, int);
static int (*p_close)(TDB *);

enum { REQ_CALL = 0, REPLY_CALL = 1, REQ_MESSAGE = 5, REQ_CONTROL = 7, REPLY_CONTROL = 8 };
enum { PROCESS_EXISTS = 0, GETDBPATH = 4, DB_ATTACH = 18, REGISTER = 23, DEREGISTER = 24, GET_PNN = 35, ATTACH_PERSISTENT = 61, TRANS3_COMMIT = 119,
	GET_HEALTH = 122, DELETION = 128, SET_READONLY = 129, TRAVERSE_START_EXT = 131, OPEN_FLAGS = 149, ATTACH_REPLICATED = 150 };
#define CURRENT 0xF0000001u
#define CONNECTED 0xF0000004u
#define JOIN 0xAE00000000000001ull
#define SYNC 0xAE00000000000002ull
#define DELEGATED 0x01000000u
#define READONLY_COPY 0x02000000u
/* Of the record header in front of every value. */
enum { AT_DMASTER = 8, AT_FLAGS = 16, HEADER = 24 };

struct database { TDB *tdb; uint32_t id; };

static int fd, nodes = 1;
static double seconds = 10, every, start, next_sample;
static uint32_t pnn = 0xFFFFFFFFu, reqid = 0x7FFFFF38u, ready_nodes, operations;
static int synced;
static void (*on_message)(const unsigned char *data, uint32_t length);

static void die(const char *what) { perror(what); exit(1); }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static uint32_t u32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* Looks at the clock: whether the run goes on. */
static int running(void)
{
	double t = now();
	if (every > 0 && t >= next_sample) {
		printf("Sample:%.6f:%u\n", t - start, operations);
		fflush(stdout);
		while (next_sample <= t) next_sample += every;
	}
	return t < start + seconds;
}
static void begin(void) { start = now(); next_sample = start + every; }

static void put(const void *packet, uint32_t length)
{
	for (const char *p = packet; length > 0;) {
		ssize_t n = write(fd, p, length);
		if (n < 0) die("write");
		p += n; length -= n;
	}
}

/* length: the packet without padding */
static void send_packet(uint32_t operation, uint32_t destnode, uint32_t id, uint32_t *packet, uint32_t length)
{
	uint32_t padded = (length + 7) & ~7u;
	packet[0] = padded; packet[1] = 0x43544442; packet[2] = 1; packet[3] = 0; packet[4] = operation; packet[5] = destnode; packet[6] = pnn; packet[7] = id;
	memset((char *)packet + length, 0, padded - length);
	put(packet, padded);
}

static void message(uint32_t destnode, uint64_t srvid, const void *data, uint32_t length)
{
	uint32_t p[32] = {0};
	memcpy(p + 8, &srvid, 8); p[10] = length;
	if (length) memcpy(p + 11, data, length);
	send_packet(REQ_MESSAGE, destnode, 0, p, 44 + length);
}

/* What the socket brought and nobody has looked at yet: in[first] to in[have]. */
static unsigned char in[1 << 18];
static size_t first, have;

static int more(int timeout_ms)
{
	struct pollfd p = { fd, POLLIN, 0 };
	if (timeout_ms >= 0 && poll(&p, 1, timeout_ms) <= 0) return 0;
	if (first > 0) { memmove(in, in + first, have - first); have -= first; first = 0; }
	ssize_t n = read(fd, in + have, sizeof in - have);
	if (n <= 0) die("daemon went away");
	have += n;
	return 1;
}

static void got_message(const unsigned char *p)
{
	uint64_t srvid;
	memcpy(&srvid, p + 32, 8);
	uint32_t length = u32(p + 40);
	if (srvid == SYNC) synced = 1;
	else if (srvid == JOIN) { if (length == 4 && u32(p + 44) < (uint32_t)nodes) ready_nodes |= 1u << u32(p + 44); }
	else if (on_message) on_message(p + 44, length);
}

/* The first packet, copied out, or 0 if it is not whole yet. */
static uint32_t take(unsigned char *out)
{
	if (have - first < 4 || have - first < u32(in + first)) return 0;
	uint32_t length = u32(in + first);
	memcpy(out, in + first, length);
	first += length;
	return length;
}

static int32_t wait_reply(uint32_t id, unsigned char *out)
{
	static unsigned char other[sizeof in];
	for (;;) {
		while (take(other)) {
			uint32_t operation = u32(other + 16);
			if (operation == REQ_MESSAGE) { got_message(other); continue; }
			if ((operation == REPLY_CONTROL || operation == REPLY_CALL) && u32(other + 28) == id) {
				if (out) memcpy(out, other, u32(other));
				return (int32_t)u32(other + 32);
			}
		}
		more(-1);
	}
}

static int32_t control(uint32_t opcode, uint32_t destnode, uint64_t srvid, const void *data, uint32_t length, unsigned char *out)
{
	uint32_t p[2048] = {0}, id = reqid++;
	if (60 + length > sizeof p - 8) { fprintf(stderr, "control too large\n"); exit(1); }
	p[8] = opcode; memcpy(p + 10, &srvid, 8); p[14] = length;
	if (length) memcpy(p + 15, data, length);
	send_packet(REQ_CONTROL, destnode, id, p, 60 + length);
	return wait_reply(id, out);
}

static void call_here(const struct database *db, TDB_DATA key, uint32_t flags)
{
	uint32_t p[64] = {0}, id = reqid++;
	p[8] = flags; p[9] = db->id; p[10] = 0xFF000001u; p[12] = key.dsize;
	memcpy(p + 14, key.dptr, key.dsize);
	send_packet(REQ_CALL, CURRENT, id, p, 56 + key.dsize);
	if (wait_reply(id, NULL) != 0) { fprintf(stderr, "fetch lock failed\n"); exit(1); }
}

/* type: of the attach control */
static struct database attach(const char *name, uint32_t type)
{
	unsigned char r[4096];
	struct database db;
	if (control(type, pnn, 0, name, strlen(name) + 1, r)) { fprintf(stderr, "Failed to attach to DB %s\n", name); exit(1); }
	db.id = u32(r + 44);
	char path[4096];
	control(GETDBPATH, pnn, 0, &db.id, 4, r);
	memcpy(path, r + 44, sizeof path - 44);
	control(GET_HEALTH, pnn, 0, &db.id, 4, r);
	control(OPEN_FLAGS, pnn, 0, &db.id, 4, r);
	db.tdb = p_open(path, 0, u32(r + 44), O_RDWR, 0600);
	if (!db.tdb) die(path);
	return db;
}

/* Header and data of the locked record; free() it. */
static TDB_DATA fetch_lock(const struct database *db, TDB_DATA key)
{
	for (;;) {
		p_lock(db->tdb, key);
		TDB_DATA v = p_fetch(db->tdb, key);
		if (v.dptr && v.dsize >= HEADER && u32(v.dptr + AT_DMASTER) == pnn && !(u32(v.dptr + AT_FLAGS) & DELEGATED)) return v;
		free(v.dptr);
		p_unlock(db->tdb, key);
		call_here(db, key, 1);
	}
}

static TDB_DATA fetch_lock_to_read(const struct database *db, TDB_DATA key)
{
	for (;;) {
		p_lock(db->tdb, key);
		TDB_DATA v = p_fetch(db->tdb, key);
		if (v.dptr && v.dsize >= HEADER && (u32(v.dptr + AT_DMASTER) == pnn || (u32(v.dptr + AT_FLAGS) & (DELEGATED | READONLY_COPY)))) return v;
		free(v.dptr);
		p_unlock(db->tdb, key);
		call_here(db, key, 1 | 4);
	}
}

static void store(const struct database *db, TDB_DATA key, const unsigned char *header, const void *data, uint32_t length)
{
	static unsigned char value[8192];
	memcpy(value, header, HEADER);
	memcpy(value + HEADER, data, length);
	TDB_DATA v = { value, HEADER + length };
	if (p_store(db->tdb, key, v, 1)) { fprintf(stderr, "store failed\n"); exit(1); }
}

static void unlock(const struct database *db, TDB_DATA key, TDB_DATA value) { p_unlock(db->tdb, key); free(value.dptr); }

/* An empty record is stored already. */
static void schedule_for_deletion(const struct database *db, TDB_DATA key, const unsigned char *header)
{
	unsigned char hint[128] = {0};
	uint32_t size = key.dsize;
	memcpy(hint, &db->id, 4); memcpy(hint + 8, header, HEADER); memcpy(hint + 32, &size, 4); memcpy(hint + 36, key.dptr, size);
	control(DELETION, pnn, 0, hint, 36 + size, NULL);
}

static void register_srvid(uint64_t srvid) { control(REGISTER, pnn, srvid, NULL, 0, NULL); }

static void barrier(void)
{
	if (pnn == 0) { register_srvid(JOIN); printf("Waiting for cluster\n"); fflush(stdout); }
	register_srvid(SYNC);
	int said = 0;
	static unsigned char p[sizeof in];
	for (double begun = now(), join = begun + 1; !synced;) {
		if (now() - begun > 30) { errno = ETIMEDOUT; die("cluster wait"); }
		if (now() >= join) { message(0, JOIN, &pnn, 4); join = now() + 1; }
		if (pnn == 0 && !said && ready_nodes == (1u << nodes) - 1) { said = 1; message(CONNECTED, SYNC, NULL, 0); }
		more(20);
		while (take(p)) if (u32(p + 16) == REQ_MESSAGE) got_message(p);
	}
}

/* Serves messages until the time is over; each is taken off the stream before it is handled, as its handler may wait for a reply. */
static void serve(void (*tick)(void))
{
	static unsigned char p[sizeof in];
	double next = start + 1;
	while (running()) {
		double t = now(), limit = start + seconds;
		if (tick && t >= next) { tick(); next += 1; }
		while (take(p)) if (u32(p + 16) == REQ_MESSAGE) got_message(p);
		if (tick && next < limit) limit = next;
		if (every > 0 && next_sample < limit) limit = next_sample;
		if (limit > t) more((int)((limit - t) * 1000) + 1);
	}
}

static int plus, minus, depth = 1;

static void ring_message(const unsigned char *data, uint32_t length)
{
	if (length != 4) return;
	int32_t incr = (int32_t)u32(data);
	operations++;
	if (incr == 1) plus++; else minus++;
	message((pnn + nodes + incr) % nodes, 0, &incr, 4);
}
static void ring_tick(void)
{
	int32_t one = 1, back = -1;
	if (pnn != 0) return;
	for (int i = 0; plus == 0 && i < depth; i++) message((pnn + 1) % nodes, 0, &one, 4);
	for (int i = 0; minus == 0 && i < depth; i++) message((pnn + nodes - 1) % nodes, 0, &back, 4);
}

static struct database db;
static TDB_DATA key;

static void ring_update(void)
{
	char text[2048] = "";
	TDB_DATA v = fetch_lock(&db, key);
	size_t length = v.dsize - HEADER;
	if (length > 0 && length <= 1000) { memcpy(text, v.dptr + HEADER, length); text[length] = 0; }
	if (text[0] == 0) strcpy(text, "Test data\n");
	sprintf(text + strlen(text), "msg_count=%u on node %u\n", operations, pnn);
	store(&db, key, v.dptr, text, strlen(text) + 1);
	unlock(&db, key, v);
	message((pnn + 1) % nodes, 0, NULL, 0);
}
static void fetch_ring_message(const unsigned char *data, uint32_t length) { (void)data; (void)length; operations++; ring_update(); }

static uint32_t count_up(const struct database *db, TDB_DATA key)
{
	uint32_t counter = 0;
	TDB_DATA v = fetch_lock(db, key);
	if (v.dsize == HEADER + 4) counter = u32(v.dptr + HEADER);
	counter++;
	store(db, key, v.dptr, &counter, 4);
	unlock(db, key, v);
	operations++;
	return counter;
}

/* A lock: its database, its name with NUL, and the 32 bytes of this process in its record. */
struct g_lock { struct database db; TDB_DATA name; unsigned char mine[32]; };

static struct g_lock g_lock_of(const char *name, uint32_t task)
{
	static struct database locks;
	if (!locks.tdb) locks = attach("g_lock.tdb", DB_ATTACH);
	struct g_lock lock = { locks, { (unsigned char *)name, strlen(name) + 1 }, {0} };
	uint64_t pid = getpid(), unique = ((uint64_t)task << 32) | pid;
	uint32_t type = 1;
	memcpy(lock.mine, &type, 4); memcpy(lock.mine + 8, &pid, 8); memcpy(lock.mine + 16, &task, 4); memcpy(lock.mine + 20, &pnn, 4);
	memcpy(lock.mine + 24, &unique, 8);
	return lock;
}

static void g_lock_lock(const struct g_lock *lock)
{
	unsigned char list[4096];
	for (;;) {
		TDB_DATA v = fetch_lock(&lock->db, lock->name);
		uint32_t length = v.dsize - HEADER, at = 0;
		memcpy(list, v.dptr + HEADER, length);
		int busy = 0;
		while (at < length) {
			uint32_t holder = u32(list + at + 8);
			if (control(PROCESS_EXISTS, u32(list + at + 20), 0, &holder, 4, NULL) == 0) { busy = 1; break; }
			memmove(list + at, list + length - 32, 32);
			length -= 32;
		}
		if (!busy) { memcpy(list + length, lock->mine, 32); store(&lock->db, lock->name, v.dptr, list, length + 32); }
		unlock(&lock->db, lock->name, v);
		if (!busy) return;
		usleep(1000);
	}
}

static void g_lock_unlock(const struct g_lock *lock)
{
	unsigned char list[4096];
	TDB_DATA v = fetch_lock(&lock->db, lock->name);
	uint32_t length = v.dsize - HEADER;
	memcpy(list, v.dptr + HEADER, length);
	for (uint32_t at = 0; at < length; at += 32) {
		if (memcmp(list + at, lock->mine, 32)) continue;
		memmove(list + at, list + length - 32, 32);
		length -= 32;
		break;
	}
	store(&lock->db, lock->name, v.dptr, list, length);
	if (length == 0) schedule_for_deletion(&lock->db, lock->name, v.dptr);
	unlock(&lock->db, lock->name, v);
}

/* A commit's buffer: its head and the records so far. */
static unsigned char buffer[4096];
static uint32_t filled;

static void add_record(TDB_DATA name, uint64_t rsn, uint32_t dmaster, const void *data, uint32_t length)
{
	uint32_t head[4] = { 16 + name.dsize + HEADER + length, 0, name.dsize, HEADER + length };
	unsigned char *p = buffer + filled;
	if (filled + head[0] > sizeof buffer) { fprintf(stderr, "transaction too large\n"); exit(1); }
	memcpy(p, head, 16); memcpy(p + 16, name.dptr, name.dsize);
	p += 16 + name.dsize;
	memset(p, 0, HEADER);
	memcpy(p, &rsn, 8); memcpy(p + AT_DMASTER, &dmaster, 4);
	if (length) memcpy(p + HEADER, data, length);
	filled += head[0];
	uint32_t records = u32(buffer + 4) + 1;
	memcpy(buffer + 4, &records, 4);
}

static TDB_DATA sequence_key = { (unsigned char *)"__db_sequence_number__", 23 };

static uint64_t sequence(uint64_t *rsn)
{
	uint64_t number = 0;
	TDB_DATA v = p_fetch(db.tdb, sequence_key);
	*rsn = 0;
	if (v.dptr && v.dsize >= HEADER) memcpy(rsn, v.dptr, 8);
	if (v.dptr && v.dsize == HEADER + 8) memcpy(&number, v.dptr + HEADER, 8);
	free(v.dptr);
	return number;
}

static void transaction(const struct g_lock *lock, uint32_t *last)
{
	static uint32_t counters[64];
	uint32_t places = (uint32_t)nodes > pnn ? (uint32_t)nodes : pnn + 1, dmaster = 0xFFFFFFFFu;
	uint64_t rsn = 0, sequence_rsn;
	g_lock_lock(lock);
	memset(buffer, 0, 8);
	memcpy(buffer, &db.id, 4);
	filled = 8;
	memset(counters, 0, sizeof counters);
	TDB_DATA v = p_fetch(db.tdb, key);
	if (v.dptr && v.dsize >= HEADER) { memcpy(&rsn, v.dptr, 8); dmaster = u32(v.dptr + AT_DMASTER); }
	uint32_t length = v.dptr && v.dsize >= HEADER ? v.dsize - HEADER : 0;
	if (length > sizeof counters) length = sizeof counters;
	add_record(key, rsn, dmaster, v.dptr ? v.dptr + HEADER : NULL, length);
	if (length >= 4 * places) memcpy(counters, v.dptr + HEADER, 4 * places);
	free(v.dptr);
	counters[pnn]++;
	add_record(key, rsn + 1, pnn, counters, 4 * places);
	uint64_t before = sequence(&sequence_rsn), after = before + 1;
	add_record(sequence_key, sequence_rsn + 1, pnn, &after, 8);
	while (control(TRANS3_COMMIT, pnn, 0, buffer, filled, NULL) != 0) {
		uint64_t found = sequence(&sequence_rsn);
		if (found == after) break;
		if (found != before) { fprintf(stderr, "seqnum mismatch\n"); exit(1); }
	}
	g_lock_unlock(lock);
	for (int node = 0; node < nodes; node++) {
		if (pnn == 0 && counters[node] < last[node]) {
			fprintf(stderr, "Counter reduced for node %d: %u -> %u\n", node, last[node], counters[node]);
			exit(1);
		}
		last[node] = counters[node];
	}
	operations++;
}

static int ended;
static void traverse_message(const unsigned char *data, uint32_t length)
{
	if (length < 16) return;
	if (u32(data + 8) == 0 && u32(data + 12) == 0) ended = 1;
	else operations++;
}

int main(int argc, char **argv)
{
	const char *path = "/run/ctdb/ctdbd.socket", *database = "fetch_loop.tdb", *name = "testkey", *mode = argc > 1 ? argv[1] : "", *type = "volatile";
	int records = 1000;
	double writes = 0;
	for (int c; (c = getopt(argc - 1, argv + 1, "s:t:n:D:k:T:c:r:q:w:")) != -1;) {
		if (c == 's') path = optarg; else if (c == 't') seconds = atof(optarg); else if (c == 'n') nodes = atoi(optarg);
		else if (c == 'D') database = optarg; else if (c == 'k') name = optarg; else if (c == 'T') type = optarg;
		else if (c == 'c') records = atoi(optarg); else if (c == 'r') writes = atof(optarg); else if (c == 'q') depth = atoi(optarg);
		else if (c == 'w') every = atoi(optarg) / 1000.0; else return 1;
	}
	void *h = dlopen("libtdb.so.1", RTLD_NOW);
	if (!h) { fprintf(stderr, "%s\n", dlerror()); return 1; }
	p_open = dlsym(h, "tdb_open"); p_fetch = dlsym(h, "tdb_fetch"); p_lock = dlsym(h, "tdb_chainlock"); p_unlock = dlsym(h, "tdb_chainunlock");
	p_store = dlsym(h, "tdb_store"); p_close = dlsym(h, "tdb_close");
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, path, sizeof a.sun_path - 1);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&a, sizeof a)) die(path);
	pnn = control(GET_PNN, CURRENT, 0, NULL, 0, NULL);
	key.dptr = (unsigned char *)name; key.dsize = strlen(name);

	if (!strcmp(mode, "fetch_loop_key")) {
		uint32_t counter = 0;
		int said = 0;
		db = attach(database, DB_ATTACH);
		begin();
		while (running()) {
			for (int i = 0; i < 32; i++) counter = count_up(&db, key);
			if (now() < start + said + 1) continue;
			printf("Locks:%u\n", counter);
			fflush(stdout);
			said++;
		}
		if (said < seconds) printf("Locks:%u\n", counter);
	} else if (!strcmp(mode, "fetch_loop")) {
		uint32_t counter = 0;
		db = attach(database, DB_ATTACH);
		barrier();
		begin();
		while (running()) for (int i = 0; i < 32; i++) counter = count_up(&db, key);
		printf("Locks:%u\n", counter);
	} else if (!strcmp(mode, "spread")) {
		db = attach(database, DB_ATTACH);
		uint32_t random = getpid() * 2654435761u;
		begin();
		while (running()) {
			char text[256];
			random = random * 1664525u + 1013904223u;
			TDB_DATA one = { (unsigned char *)text, 0 };
			one.dsize = snprintf(text, 200, "%s.%u", name, (uint32_t)((uint64_t)random * records >> 32));
			count_up(&db, one);
		}
	} else if (!strcmp(mode, "fetch_readonly_loop")) {
		db = attach(database, DB_ATTACH);
		for (int node = 0; node < nodes; node++) control(SET_READONLY, node, 0, &db.id, 4, NULL);
		if (nodes > 1) barrier();
		begin();
		uint32_t reads = 0;
		for (double next = start; running();) {
			if (pnn == 0 && writes > 0 && now() >= next) { count_up(&db, key); operations = reads; next += 1 / writes; }
			for (int i = 0; i < 32; i++) unlock(&db, key, fetch_lock_to_read(&db, key));
			operations = reads += 32;
		}
		printf("Locks:%u\n", reads);
	} else if (!strcmp(mode, "g_lock_loop")) {
		struct g_lock lock = g_lock_of("testkey", 1);
		if (nodes > 1) barrier();
		for (begin(); running(); operations++) { g_lock_lock(&lock); g_lock_unlock(&lock); }
		printf("PNN:%u counter:%u\n", pnn, operations);
	} else if (!strcmp(mode, "transaction_loop")) {
		if (strcmp(type, "persistent") && strcmp(type, "replicated")) { fprintf(stderr, "Database must be persistent or replicated\n"); return 1; }
		static uint32_t last[64];
		char lock_name[32];
		db = attach(database, !strcmp(type, "persistent") ? ATTACH_PERSISTENT : ATTACH_REPLICATED);
		snprintf(lock_name, sizeof lock_name, "transaction_db_0x%08x", db.id);
		struct g_lock lock = g_lock_of(lock_name, db.id);
		if (nodes > 1) barrier();
		for (begin(); running();) transaction(&lock, last);
		printf("Transaction[%u]: ", pnn);
		for (int node = 0; node < nodes; node++) printf("%6u ", last[node]);
		printf("\n");
	} else if (!strcmp(mode, "message_ring")) {
		register_srvid(0);
		on_message = ring_message;
		barrier();
		begin();
		serve(ring_tick);
		printf("Ring[%u]: %.2f msgs/sec (+ve=%d -ve=%d)\n", pnn, operations / (now() - start), plus, minus);
	} else if (!strcmp(mode, "fetch_ring")) {
		db = attach(database, DB_ATTACH);
		register_srvid(0);
		on_message = fetch_ring_message;
		barrier();
		begin();
		if (pnn == (uint32_t)nodes - 1) ring_update();
		serve(NULL);
		printf("Fetch[%u]: %.2f msgs/sec\n", pnn, operations / (now() - start));
	} else if (!strcmp(mode, "control")) {
		for (begin(); running(); operations++)
			if (control(GET_PNN, CURRENT, 0, NULL, 0, NULL) != (int32_t)pnn) { fprintf(stderr, "wrong answer\n"); return 1; }
		printf("Controls:%u\n", operations);
	} else if (!strcmp(mode, "traverse")) {
		static unsigned char p[sizeof in];
		db = attach(database, DB_ATTACH);
		uint64_t srvid = 0xBE00000000000000ull | getpid();
		unsigned char request[24] = {0};
		memcpy(request, &db.id, 4); memcpy(request + 8, &srvid, 8);
		register_srvid(srvid);
		on_message = traverse_message;
		begin();
		if (control(TRAVERSE_START_EXT, pnn, 0, request, 24, NULL)) { fprintf(stderr, "traverse failed\n"); return 1; }
		while (!ended) { while (take(p)) if (u32(p + 16) == REQ_MESSAGE) got_message(p); if (!ended) more(-1); }
		printf("Traversed:%u:%.6f\n", operations, now() - start);
	} else return 1;
	if (db.tdb) p_close(db.tdb);
	return 0;
}
