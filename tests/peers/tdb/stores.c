// Every single store of the real libtdb, for TinyCC (bun:ffi's cc), which needs neither headers nor a compiler installed: x86-64 Linux.
// TDB_DATA is a 16 byte structure of two integers: the x86-64 ABI passes it as two arguments, as written here.
typedef unsigned long size_t;
typedef unsigned char u8;
extern void *dlopen(const char *, int);
extern void *dlsym(void *, const char *);
extern void *memcpy(void *, const void *, size_t), *memset(void *, int, size_t), *malloc(size_t);
extern void *mmap(void *, size_t, int, int, int, long);
extern int memcmp(const void *, const void *, size_t), strcmp(const char *, const char *), sscanf(const char *, const char *, ...);
extern size_t strlen(const char *);
extern char *strtok(char *, const char *);
extern int fork(void), waitpid(int, int *, int), raise(int), open(const char *, int, ...), atoi(const char *);
extern long ptrace(int, int, void *, void *), lseek(int, long, int), write(int, const void *, size_t);
extern void _exit(int);

enum { O_RDWR_CREAT = 0102, O_WRONLY_CREAT_TRUNC = 01101, PTRACE_TRACEME = 0, PTRACE_SINGLESTEP = 9, SIGSTOP = 19, SEEK_END = 2 };
enum { LARGEST = 1 << 20 };

static void *(*p_open)(const char *, int, int, int, unsigned);
static int (*p_store)(void *, const u8 *, size_t, const u8 *, size_t, int), (*p_append)(void *, const u8 *, size_t, const u8 *, size_t);
static int (*p_delete)(void *, const u8 *, size_t), (*p_freelist)(void *), (*p_wipe)(void *);
static void (*p_max_dead)(void *, int);
static u8 value[LARGEST];

static void work(const char *path, int hash_size, int flags, char *script)
{
	void *t = p_open(path, hash_size, flags, O_RDWR_CREAT, 0600);
	if (!t) _exit(3);
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	for (char *line = strtok(script, "\n"); line; line = strtok(0, "\n")) {
		char op[16], name[64];
		int length = 0, fill = 'v';
		op[0] = name[0] = 0;
		sscanf(line, "%15s %63s %d %d", op, name, &length, &fill);
		memset(value, fill, length);
		const u8 *key = (const u8 *)name;
		size_t n = strlen(name);
		if (!strcmp(op, "watch")) raise(SIGSTOP);
		else if (!strcmp(op, "store")) p_store(t, key, n, value, length, 0);
		else if (!strcmp(op, "append")) p_append(t, key, n, value, length);
		else if (!strcmp(op, "delete")) p_delete(t, key, n);
		else if (!strcmp(op, "freelist")) p_freelist(t);
		else if (!strcmp(op, "wipe")) p_wipe(t);
		else if (!strcmp(op, "maxdead")) p_max_dead(t, atoi(name));
		else _exit(4);
	}
	_exit(0);
}

// Runs the script's lines in a process, those behind "watch" one instruction after the other. Whenever the file has changed, its length
// (u32) and its bytes are appended to `out`: each of them is a file that a kill may leave. Returns how many, -1 for a failure.
int watch_stores(const char *path, int hash_size, int flags, char *script, const char *out)
{
	void *h = dlopen("libtdb.so.1", 2);
	if (!h) return -1;
	p_open = dlsym(h, "tdb_open"); p_store = dlsym(h, "tdb_store"); p_append = dlsym(h, "tdb_append");
	p_delete = dlsym(h, "tdb_delete"); p_freelist = dlsym(h, "tdb_freelist_size"); p_wipe = dlsym(h, "tdb_wipe_all");
	p_max_dead = dlsym(h, "tdb_set_max_dead");
	int pid = fork(), status = 0;
	if (pid == 0) work(path, hash_size, flags, script);
	if (waitpid(pid, &status, 0) != pid || (status & 0xff) != 0x7f) return -1;
	int fd = open(path, 0), to = open(out, O_WRONLY_CREAT_TRUNC, 0600), count = 0;
	u8 *now = mmap(0, LARGEST, 1, 1, fd, 0), *last = malloc(LARGEST);
	unsigned length = 0;
	do {
		unsigned size = lseek(fd, 0, SEEK_END);
		if (size > LARGEST) return -1;
		if (size == length && memcmp(now, last, length) == 0) continue;
		length = size;
		memcpy(last, now, length);
		write(to, &length, 4);
		write(to, last, length);
		count++;
	} while (ptrace(PTRACE_SINGLESTEP, pid, 0, 0) == 0 && waitpid(pid, &status, 0) == pid && (status & 0xff) == 0x7f);
	return status == 0 ? count : -1;
}
