// The libtdb side of tests/bench/tdb.ts: the same operations as tdb-ours.ts, in C with nothing around them.
// cc -O2 -o tdb-libtdb tdb-libtdb.c -ldl ; tdb-libtdb FILE OPERATION COUNT FLAGS HASHSIZE KEYS START_AT_MS
// Prints the nanoseconds that COUNT operations took.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct { unsigned char *dptr; size_t dsize; } TDB_DATA;
typedef struct tdb_context TDB;
typedef int (*visit)(TDB *, TDB_DATA, TDB_DATA, void *);
static TDB *(*p_open)(const char *, int, int, int, mode_t);
static int (*p_close)(TDB *), (*p_store)(TDB *, TDB_DATA, TDB_DATA, int), (*p_delete)(TDB *, TDB_DATA);
static TDB_DATA (*p_fetch)(TDB *, TDB_DATA);
static int (*p_lock)(TDB *, TDB_DATA), (*p_unlock)(TDB *, TDB_DATA), (*p_traverse_read)(TDB *, visit, void *);
static int (*p_start)(TDB *), (*p_commit)(TDB *);
static void (*p_max_dead)(TDB *, int);

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}
static long sum;
static int look(TDB *t, TDB_DATA k, TDB_DATA d, void *p) { sum += k.dptr[0] + d.dsize; return 0; }
static TDB_DATA key_of(char *buf, int i) { TDB_DATA k; k.dsize = sprintf(buf, "bench-key-%010d", i); k.dptr = (unsigned char *)buf; return k; }

static void fetch_store(TDB *t, TDB_DATA *list, int keys, long n)
{
	for (long i = 0, next = 0; i < n; i++) {
		next += 7919;
		if (next >= keys) next %= keys;
		TDB_DATA k = list[next];
		p_lock(t, k);
		TDB_DATA d = p_fetch(t, k);
		if (!d.dptr) exit(4);
		d.dptr[0]++;
		if (p_store(t, k, d, 0)) exit(4);
		free(d.dptr);
		p_unlock(t, k);
	}
}

int main(int argc, char **argv)
{
	char buf[64];
	unsigned char value[100];
	TDB_DATA data = { value, sizeof(value) };
	void *h = dlopen("libtdb.so.1", RTLD_NOW);
	if (!h || argc < 8) return 2;
	p_open = dlsym(h, "tdb_open"); p_close = dlsym(h, "tdb_close"); p_store = dlsym(h, "tdb_store"); p_delete = dlsym(h, "tdb_delete");
	p_fetch = dlsym(h, "tdb_fetch"); p_lock = dlsym(h, "tdb_chainlock"); p_unlock = dlsym(h, "tdb_chainunlock");
	p_traverse_read = dlsym(h, "tdb_traverse_read"); p_start = dlsym(h, "tdb_transaction_start");
	p_commit = dlsym(h, "tdb_transaction_commit"); p_max_dead = dlsym(h, "tdb_set_max_dead");
	const char *op = argv[2];
	long n = atol(argv[3]);
	int keys = atoi(argv[6]);
	TDB *t = p_open(argv[1], atoi(argv[5]), strtol(argv[4], 0, 0), O_RDWR | O_CREAT, 0600);
	if (!t) return 3;
	memset(value, 'v', sizeof(value));
	// all keys ready beforehand, as in the other engine
	TDB_DATA *list = calloc(keys, sizeof(*list));
	for (int i = 0; i < keys; i++) { list[i] = key_of(buf, i); list[i].dptr = (unsigned char *)strdup(buf); }
	if (!strcmp(op, "fetchstore")) {
		for (int i = 0; i < keys; i++) p_store(t, list[i], data, 0);
		fetch_store(t, list, keys, 300000);
	}
	if (!strcmp(op, "commit")) for (long i = 0; i < 3; i++) {
		if (p_start(t)) return 4;
		for (int j = 0; j < keys; j++) { value[0] = i + j; if (p_store(t, list[j], data, 0)) return 4; }
		if (p_commit(t)) return 4;
	}
	double early = atof(argv[7]) - now() / 1e6 - 5;
	if (early > 0) usleep(early * 1000);
	while (now() / 1e6 < atof(argv[7])) ;
	double start = now();
	if (!strcmp(op, "fill")) for (long i = 0; i < n; i++) { if (p_store(t, key_of(buf, i), data, 0)) return 4; }
	else if (!strcmp(op, "fetchstore")) fetch_store(t, list, keys, n);
	else if (!strcmp(op, "insertdelete")) for (long done = 0; done < n; done += 2 * keys) {
		for (int i = 0; i < keys; i++) if (p_store(t, list[i], data, 2)) return 4;
		for (int i = 0; i < keys; i++) if (p_delete(t, list[i])) return 4;
	}
	else if (!strcmp(op, "traverse")) { if (p_traverse_read(t, look, 0) != n) return 4; }
	else if (!strcmp(op, "commit")) for (long i = 0; i < n; i++) {
		if (p_start(t)) return 4;
		for (int j = 0; j < keys; j++) { value[0] = i + j; if (p_store(t, list[j], data, 0)) return 4; }
		if (p_commit(t)) return 4;
	}
	else return 2;
	printf("%.0f\n", now() - start);
	p_close(t);
	return 0;
}
