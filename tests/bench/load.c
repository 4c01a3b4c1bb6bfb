/* Load on a node daemon's client socket, as thin as it gets, so that what is measured is the daemon. One instance is one
 * client (or N idle ones). Prints one line of figures; cluster.ts starts it and makes sense of them.
 *
 *   load ring SOCKET PNN NODES SECONDS TOKENS READY GO   message ring (load-generators.md 9), TOKENS in each direction; makes
 *                                                        the file READY, starts when GO exists. Prints messages a second.
 *   load control SOCKET SECONDS                          GET_PNN again and again. Prints p50, p99 in microseconds, and a second.
 *   load idle SOCKET N                                   connects N clients, prints "connected", holds them until stdin ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CURRENT_NODE 0xF0000001u
#define REQ_MESSAGE 5
#define REQ_CONTROL 7
#define GET_PNN 35
#define REGISTER_SRVID 23

static void die(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static int dial(const char *path) {
  struct sockaddr_un a = {.sun_family = AF_UNIX};
  strncpy(a.sun_path, path, sizeof a.sun_path - 1);
  for (;;) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
    close(fd);
    /* The backlog is full. */
    if (errno != EAGAIN) die("connect");
    usleep(1000);
  }
}

static void header(uint32_t *p, uint32_t length, uint32_t operation, uint32_t destnode) {
  memset(p, 0, length);
  p[0] = length;
  p[1] = 0x43544442;
  p[2] = 1;
  p[4] = operation;
  p[5] = destnode;
}

static void put(int fd, const void *bytes, size_t length) {
  const char *at = bytes;
  while (length > 0) {
    ssize_t n = write(fd, at, length);
    if (n <= 0) die("write");
    at += n;
    length -= (size_t)n;
  }
}

static void send_control(int fd, uint32_t opcode, uint64_t srvid, uint32_t reqid) {
  uint32_t p[16];
  header(p, 64, REQ_CONTROL, CURRENT_NODE);
  p[7] = reqid;
  p[8] = opcode;
  p[10] = (uint32_t)srvid;
  p[11] = (uint32_t)(srvid >> 32);
  put(fd, p, 64);
}

static char buffer[1 << 20];
static size_t have, at;

/* One packet; what it points to is valid until the next call. */
static uint32_t *packet(int fd) {
  for (;;) {
    if (have - at >= 4) {
      uint32_t length = *(uint32_t *)(buffer + at);
      if (have - at >= length) {
        uint32_t *p = (uint32_t *)(buffer + at);
        at += length;
        return p;
      }
    }
    memmove(buffer, buffer + at, have - at);
    have -= at;
    at = 0;
    ssize_t n = read(fd, buffer + have, sizeof buffer - have);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return NULL;
    if (n <= 0) die("daemon has gone");
    have += (size_t)n;
  }
}

static void message(char *out, uint32_t destnode, int32_t increment) {
  uint32_t *p = (uint32_t *)out;
  header(p, 48, REQ_MESSAGE, destnode);
  p[10] = 4;
  p[11] = (uint32_t)increment;
}

static int ring(char **argv) {
  int fd = dial(argv[0]);
  int pnn = atoi(argv[1]), nodes = atoi(argv[2]), tokens = atoi(argv[4]);
  double seconds = atof(argv[3]);
  send_control(fd, REGISTER_SRVID, 0, 1);
  packet(fd);
  close(open(argv[5], O_CREAT | O_WRONLY, 0600));
  struct stat there;
  while (stat(argv[6], &there) != 0) usleep(1000);
  struct timeval limit = {.tv_sec = 1};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  static char out[1 << 16];
  size_t queued = 0;
  if (pnn == 0) {
    for (int i = 0; i < tokens; i++) {
      message(out, 1, 1);
      put(fd, out, 48);
      message(out, (uint32_t)nodes - 1, -1);
      put(fd, out, 48);
    }
  }
  long count = 0, counted_from = 0;
  double start = now(), measured_from = 0;
  for (;;) {
    uint32_t *p = packet(fd);
    double t = now();
    /* The first second is warming up. */
    if (measured_from == 0 && t - start > 1) {
      measured_from = t;
      counted_from = count;
    }
    if (t - start > seconds + 1) {
      printf("%.0f\n", (count - counted_from) / (t - measured_from));
      return 0;
    }
    if (p == NULL || p[4] != REQ_MESSAGE) continue;
    count++;
    int32_t increment = (int32_t)p[11];
    message(out + queued, (uint32_t)((pnn + nodes + increment) % nodes), increment);
    queued += 48;
    /* What came in one read goes out in one write. */
    if (have - at < 48 || queued + 48 > sizeof out) {
      put(fd, out, queued);
      queued = 0;
    }
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static int control(char **argv) {
  int fd = dial(argv[0]);
  double seconds = atof(argv[1]), start = now(), last = start;
  size_t count = 0, room = 1 << 20;
  double *took = malloc(room * sizeof *took);
  while (last - start < seconds && count < room) {
    send_control(fd, GET_PNN, 0, (uint32_t)count);
    packet(fd);
    double t = now();
    took[count++] = (t - last) * 1e6;
    last = t;
  }
  double rate = (double)count / (last - start);
  qsort(took, count, sizeof *took, ascending);
  printf("%.1f %.1f %.0f\n", took[count / 2], took[count * 99 / 100], rate);
  return 0;
}

static int idle(char **argv) {
  int n = atoi(argv[1]);
  struct rlimit files = {.rlim_cur = (rlim_t)n + 64, .rlim_max = (rlim_t)n + 64};
  setrlimit(RLIMIT_NOFILE, &files);
  for (int i = 0; i < n; i++) {
    int fd = dial(argv[0]);
    /* As every client does; so the daemon has it for sure when the answer is here. */
    send_control(fd, GET_PNN, 0, 1);
    have = at = 0;
    packet(fd);
  }
  printf("connected\n");
  fflush(stdout);
  char byte;
  return read(0, &byte, 1) < 0;
}

int main(int argc, char **argv) {
  if (argc == 9 && strcmp(argv[1], "ring") == 0) return ring(argv + 2);
  if (argc == 4 && strcmp(argv[1], "control") == 0) return control(argv + 2);
  if (argc == 4 && strcmp(argv[1], "idle") == 0) return idle(argv + 2);
  fprintf(stderr, "usage: see load.c\n");
  return 2;
}
