/* The stock load generators' algorithms (load-generators.md 2 to 5, 7 and 9) in C on libtdb, as thin as they get: the yardstick for the clients of
 * `ctdb bench`, and somebody for them to start together with. Options and output are the stock programs'.
 *
 *   published fetch_loop_key -s SOCKET -t SECONDS -D DATABASE -k KEY    Locks:N every second
 *   published fetch_ring     -s SOCKET -t SECONDS -n NODES -D DATABASE -k KEY
 *   published message_ring   -s SOCKET -t SECONDS -n NODES
 *   published g_lock_loop    -s SOCKET -t SECONDS -n NODES
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
enum { PROCESS_EXISTS = 0, GETDBPATH = 4, DB_ATTACH = 18, REGISTER = 23, DEREGISTER = 24, GET_PNN = 35, DELETION = 128, OPEN_FLAGS = 149 };
#define CURRENT 0xF0000001u
#define CONNECTED 0xF0000004u
#define JOIN 0xAE00000000000001ull
#define SYNC 0xAE00000000000002ull

static int fd, nodes = 1, seconds = 10;
static uint32_t pnn = 0xFFFFFFFFu, reqid = 0x7FFFFF38u, ready_nodes, db_id;
static int synced;
static TDB *db;
static TDB_DATA key;
static void (*on_message)(const unsigned char *data, uint32_t length);

static void die(const char *what) { perror(what); exit(1); }
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static uint32_t u32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }

static void put(const void *packet, uint32_t length)
{
	for (const char *p = packet; length > 0;) {
		ssize_t n = write(fd, p, length);
		if (n < 0) die("write");
		p += n; length -= n;
	}
}

/* head: bytes of the fixed part; the packet is padded to 8 */
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

/* What the socket brought and nobody has looked at yet. */
static unsigned char in[1 << 16];
static size_t have;

static int more(int timeout_ms)
{
	struct pollfd p = { fd, POLLIN, 0 };
	if (timeout_ms >= 0 && poll(&p, 1, timeout_ms) <= 0) return 0;
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
	if (have < 4 || have < u32(in)) return 0;
	uint32_t length = u32(in);
	memcpy(out, in, length);
	memmove(in, in + length, have - length);
	have -= length;
	return length;
}

static int32_t wait_reply(uint32_t id, unsigned char *out)
{
	static unsigned char other[1 << 16];
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
	uint32_t p[512] = {0}, id = reqid++;
	p[8] = opcode; memcpy(p + 10, &srvid, 8); p[14] = length;
	if (length) memcpy(p + 15, data, length);
	send_packet(REQ_CONTROL, destnode, id, p, 60 + length);
	return wait_reply(id, out);
}

static void call_here(void)
{
	uint32_t p[64] = {0}, id = reqid++;
	p[8] = 1; p[9] = db_id; p[10] = 0xFF000001u; p[12] = key.dsize;
	memcpy(p + 14, key.dptr, key.dsize);
	send_packet(REQ_CALL, CURRENT, id, p, 56 + key.dsize);
	if (wait_reply(id, NULL) != 0) { fprintf(stderr, "fetch lock failed\n"); exit(1); }
}

static void attach(const char *name)
{
	unsigned char r[4096];
	if (control(DB_ATTACH, pnn, 0, name, strlen(name) + 1, r)) { fprintf(stderr, "Failed to attach to DB %s\n", name); exit(1); }
	db_id = u32(r + 44);
	char path[4096];
	control(GETDBPATH, pnn, 0, &db_id, 4, r);
	memcpy(path, r + 44, sizeof path - 44);
	control(OPEN_FLAGS, pnn, 0, &db_id, 4, r);
	db = p_open(path, 0, u32(r + 44), O_RDWR, 0600);
	if (!db) die(path);
}

/* header and data of the locked record; free() it */
static TDB_DATA fetch_lock(void)
{
	for (;;) {
		p_lock(db, key);
		TDB_DATA v = p_fetch(db, key);
		if (v.dptr && v.dsize >= 24 && u32(v.dptr + 8) == pnn && !(u32(v.dptr + 16) & 0x01000000u)) return v;
		free(v.dptr);
		p_unlock(db, key);
		call_here();
	}
}

static void store(const unsigned char *header, const void *data, uint32_t length)
{
	static unsigned char value[8192];
	memcpy(value, header, 24);
	memcpy(value + 24, data, length);
	TDB_DATA v = { value, 24 + length };
	if (p_store(db, key, v, 1)) { fprintf(stderr, "store failed\n"); exit(1); }
}

static void register_srvid(uint64_t srvid) { control(REGISTER, pnn, srvid, NULL, 0, NULL); }

static void barrier(void)
{
	if (pnn == 0) { register_srvid(JOIN); printf("Waiting for cluster\n"); fflush(stdout); }
	register_srvid(SYNC);
	int said = 0;
	unsigned char p[1 << 12];
	for (double start = now(), join = start + 1; !synced;) {
		if (now() - start > 30) { errno = ETIMEDOUT; die("cluster wait"); }
		if (now() >= join) { message(0, JOIN, &pnn, 4); join = now() + 1; }
		if (pnn == 0 && !said && ready_nodes == (1u << nodes) - 1) { said = 1; message(CONNECTED, SYNC, NULL, 0); }
		more(20);
		while (take(p)) if (u32(p + 16) == REQ_MESSAGE) got_message(p);
	}
}

/* Serves messages until the time is over; each is taken off the stream before it is handled, as its handler may wait for a reply. */
static void serve(double until, void (*tick)(void))
{
	unsigned char p[1 << 12];
	double next = now() + 1;
	for (double t; (t = now()) < until;) {
		if (tick && t >= next) { tick(); next += 1; }
		while (take(p)) if (u32(p + 16) == REQ_MESSAGE) got_message(p);
		double limit = until < next || !tick ? until : next;
		if (limit > t) more((int)((limit - t) * 1000) + 1);
	}
}

static int count, plus, minus;

static void ring_message(const unsigned char *data, uint32_t length)
{
	if (length != 4) return;
	int32_t incr = (int32_t)u32(data);
	count++;
	if (incr == 1) plus++; else minus++;
	message((pnn + nodes + incr) % nodes, 0, &incr, 4);
}
static void ring_tick(void)
{
	int32_t one = 1, back = -1;
	if (pnn != 0) return;
	if (plus == 0) message((pnn + 1) % nodes, 0, &one, 4);
	if (minus == 0) message((pnn + nodes - 1) % nodes, 0, &back, 4);
}

static void ring_update(void)
{
	char text[2048] = "";
	TDB_DATA v = fetch_lock();
	size_t length = v.dsize - 24;
	if (length > 0 && length <= 1000) { memcpy(text, v.dptr + 24, length); text[length] = 0; }
	if (text[0] == 0) strcpy(text, "Test data\n");
	sprintf(text + strlen(text), "msg_count=%d on node %u\n", count, pnn);
	store(v.dptr, text, strlen(text) + 1);
	p_unlock(db, key);
	free(v.dptr);
	message((pnn + 1) % nodes, 0, NULL, 0);
}
static void fetch_ring_message(const unsigned char *data, uint32_t length) { (void)data; (void)length; count++; ring_update(); }

static uint32_t counter;
static void count_up(void)
{
	TDB_DATA v = fetch_lock();
	if (v.dsize == 28) counter = u32(v.dptr + 24);
	counter++;
	store(v.dptr, &counter, 4);
	p_unlock(db, key);
	free(v.dptr);
}

static void g_lock_round(void)
{
	unsigned char mine[32] = {0}, list[4096];
	uint64_t pid = getpid(), unique = (1ull << 32) | pid;
	uint32_t type = 1, task = 1;
	memcpy(mine, &type, 4); memcpy(mine + 8, &pid, 8); memcpy(mine + 16, &task, 4); memcpy(mine + 20, &pnn, 4); memcpy(mine + 24, &unique, 8);
	for (;;) {
		TDB_DATA v = fetch_lock();
		uint32_t length = v.dsize - 24, at = 0;
		memcpy(list, v.dptr + 24, length);
		int busy = 0;
		while (at < length) {
			uint32_t holder = u32(list + at + 8);
			if (control(PROCESS_EXISTS, u32(list + at + 20), 0, &holder, 4, NULL) == 0) { busy = 1; break; }
			memmove(list + at, list + length - 32, 32);
			length -= 32;
		}
		if (!busy) { memcpy(list + length, mine, 32); store(v.dptr, list, length + 32); }
		p_unlock(db, key);
		free(v.dptr);
		if (!busy) break;
		usleep(1000);
	}
	TDB_DATA v = fetch_lock();
	uint32_t length = v.dsize - 24;
	memcpy(list, v.dptr + 24, length);
	for (uint32_t at = 0; at < length; at += 32) if (!memcmp(list + at, mine, 32)) { memmove(list + at, list + length - 32, 32); length -= 32; break; }
	store(v.dptr, list, length);
	if (length == 0) {
		unsigned char hint[128] = {0};
		uint32_t size = key.dsize;
		memcpy(hint, &db_id, 4); memcpy(hint + 8, v.dptr, 24); memcpy(hint + 32, &size, 4); memcpy(hint + 36, key.dptr, key.dsize);
		control(DELETION, pnn, 0, hint, 36 + size, NULL);
	}
	p_unlock(db, key);
	free(v.dptr);
}

int main(int argc, char **argv)
{
	const char *path = "/run/ctdb/ctdbd.socket", *database = "fetch_loop.tdb", *name = "testkey", *mode = argc > 1 ? argv[1] : "";
	for (int c; (c = getopt(argc - 1, argv + 1, "s:t:n:D:k:")) != -1;) {
		if (c == 's') path = optarg; else if (c == 't') seconds = atoi(optarg); else if (c == 'n') nodes = atoi(optarg);
		else if (c == 'D') database = optarg; else if (c == 'k') name = optarg; else return 1;
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
		attach(database);
		double start = now();
		for (int second = 1; second <= seconds; second++) {
			while (now() < start + second) for (int i = 0; i < 32; i++) count_up();
			printf("Locks:%u\n", counter);
			fflush(stdout);
		}
	} else if (!strcmp(mode, "g_lock_loop")) {
		attach("g_lock.tdb");
		key.dsize++;
		barrier();
		uint32_t rounds = 0;
		for (double end = now() + seconds; now() < end; rounds++) g_lock_round();
		printf("PNN:%u counter:%u\n", pnn, rounds);
	} else if (!strcmp(mode, "message_ring")) {
		register_srvid(0);
		on_message = ring_message;
		barrier();
		double start = now();
		serve(start + seconds, ring_tick);
		printf("Ring[%u]: %.2f msgs/sec (+ve=%d -ve=%d)\n", pnn, count / (now() - start), plus, minus);
	} else if (!strcmp(mode, "fetch_ring")) {
		attach(database);
		register_srvid(0);
		on_message = fetch_ring_message;
		barrier();
		double start = now();
		if (pnn == (uint32_t)nodes - 1) ring_update();
		serve(start + seconds, NULL);
		printf("Fetch[%u]: %.2f msgs/sec\n", pnn, count / (now() - start));
	} else return 1;
	if (db) p_close(db);
	return 0;
}
