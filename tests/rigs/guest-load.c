/* What a Linux guest of the tests does with TCP that busybox cannot: bulk data that is checked, many connections at once
 * and one after the other, and how a connection fails. Each verb says on one line what came of it.
 *
 *   load send ADDRESS PORT BYTES SEED       sends a stream and ends it; the answer of the other end, in hexadecimal
 *   load take ADDRESS PORT DELAY-S          takes a stream to its end, having waited; its length and hash
 *   load hold ADDRESS PORT COUNT            connections that are all open at once; how many were answered
 *   load short ADDRESS PORT COUNT WIDTH     connections one after the other, some at a time; how many were answered
 *   load connect ADDRESS PORT SYNS          one connection, with so many SYNs sent again; how it ended
 *
 * The stream and the hash are those of the crate `frontend` (hash.rs). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define K UINT64_C(0x9e3779b97f4a7c15)
#define BLOCK ((1 << 18) - 5)

static struct sockaddr_storage to;
static socklen_t to_len;

static void fail(const char *what) {
  printf("%s: %s\n", what, strerror(errno));
  exit(1);
}

static void address(const char *text, const char *port) {
  struct sockaddr_in *v4 = (void *)&to;
  struct sockaddr_in6 *v6 = (void *)&to;
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(atoi(port));
    to_len = sizeof *v4;
  } else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(atoi(port));
    to_len = sizeof *v6;
  } else {
    errno = EINVAL;
    fail(text);
  }
}

static int new_socket(int flags) {
  int fd = socket(to.ss_family, SOCK_STREAM | flags, 0);
  if (fd < 0) fail("socket");
  return fd;
}

static int connected(void) {
  int fd = new_socket(0);
  if (connect(fd, (void *)&to, to_len)) fail("connect");
  return fd;
}

static uint64_t splitmix(uint64_t *state) {
  uint64_t z = *state += K;
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static void send_stream(uint64_t bytes, uint64_t seed) {
  static unsigned char block[BLOCK + 8];
  for (size_t at = 0; at < BLOCK; at += 8) {
    uint64_t word = splitmix(&seed);
    memcpy(block + at, &word, 8);
  }
  int fd = connected();
  size_t at = 0;
  while (bytes > 0) {
    size_t n = BLOCK - at < bytes ? BLOCK - at : bytes;
    ssize_t sent = write(fd, block + at, n);
    if (sent <= 0) fail("write");
    bytes -= sent;
    at = (at + sent) % BLOCK;
  }
  if (shutdown(fd, SHUT_WR)) fail("shutdown");
  unsigned char answer[16];
  ssize_t n;
  while ((n = read(fd, answer, sizeof answer)) > 0)
    for (ssize_t i = 0; i < n; i++) printf("%02x", answer[i]);
  if (n < 0) fail("read");
  printf("\n");
}

static uint64_t mix(uint64_t state, uint64_t word) { return ((state << 23 | state >> 41) ^ word) * K; }

static void take_stream(int delay_s) {
  static unsigned char room[1 << 18];
  int fd = connected();
  sleep(delay_s);
  uint64_t state = 0, pending = 0, len = 0;
  ssize_t n;
  while ((n = read(fd, room, sizeof room)) > 0) {
    ssize_t i = 0;
    while (i < n) {
      if (len % 8 == 0 && n - i >= 8) {
        uint64_t word;
        memcpy(&word, room + i, 8);
        state = mix(state, word);
        i += 8, len += 8;
        continue;
      }
      pending |= (uint64_t)room[i++] << (8 * (len++ % 8));
      if (len % 8 == 0) state = mix(state, pending), pending = 0;
    }
  }
  if (n < 0) fail("read");
  uint64_t hash = mix(mix(state, pending), len);
  printf("%" PRIu64 " %016" PRIx64 "\n", len, hash ^ hash >> 32);
}

/* A connection that sends its number and expects it back. */
struct one {
  uint32_t number;
  int asked;
};

static int begin(struct pollfd *slot, struct one *one, uint32_t number) {
  slot->fd = new_socket(SOCK_NONBLOCK);
  slot->events = POLLOUT;
  one->number = number;
  one->asked = 0;
  return connect(slot->fd, (void *)&to, to_len) && errno != EINPROGRESS ? -1 : 0;
}

/* Goes on with a connection: 0 when there is more to do, 1 when it was answered, -1 when it failed. */
static int go_on(struct pollfd *slot, struct one *one) {
  uint32_t answer;
  if (!one->asked) {
    if (send(slot->fd, &one->number, 4, MSG_NOSIGNAL) != 4) return -1;
    one->asked = 1;
    slot->events = POLLIN;
    return 0;
  }
  ssize_t n = read(slot->fd, &answer, 4);
  if (n < 0 && errno == EAGAIN) return 0;
  if (n != 4) return errno = n < 0 ? errno : 0, -1;
  return answer == one->number ? 1 : (errno = EBADMSG, -1);
}

/* `count` connections, at most `width` at a time; with `hold`, none is closed before all were answered. */
static void many(uint32_t count, uint32_t width, int hold) {
  struct rlimit files = {width + 64, width + 64};
  if (setrlimit(RLIMIT_NOFILE, &files)) fail("setrlimit");
  struct pollfd *slots = calloc(width, sizeof *slots);
  struct one *ones = calloc(width, sizeof *ones);
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  uint32_t begun = 0, answered = 0, failed = 0;
  for (uint32_t i = 0; i < width; i++) slots[i].fd = -1;
  while (answered + failed < count) {
    for (uint32_t i = 0; i < width && begun < count; i++) {
      if (slots[i].fd < 0 && begin(&slots[i], &ones[i], begun++)) fail("connect");
    }
    if (poll(slots, width, 30000) <= 0) break;
    for (uint32_t i = 0; i < width; i++) {
      if (!slots[i].revents) continue;
      int got = go_on(&slots[i], &ones[i]);
      if (got == 0) continue;
      if (got < 0 && !failed++) printf("the first to fail: %s; ", strerror(errno));
      answered += got > 0;
      if (hold && got > 0) {
        slots[i].events = 0;
        slots[i].fd = -2 - slots[i].fd; /* open, and not looked at */
        continue;
      }
      close(slots[i].fd);
      slots[i].fd = -1;
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  long ms = (end.tv_sec - start.tv_sec) * 1000 + (end.tv_nsec - start.tv_nsec) / 1000000;
  printf("%" PRIu32 " answered in %ld ms\n", answered, ms);
}

static void connect_once(int syns) {
  int fd = new_socket(0);
  if (setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &syns, sizeof syns)) fail("TCP_SYNCNT");
  int failed = connect(fd, (void *)&to, to_len);
  printf("%s\n", failed ? strerrorname_np(errno) : "connected");
}

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  address(argv[2], argv[3]);
  uint64_t amount = strtoull(argv[4], NULL, 10);
  uint64_t more = argc > 5 ? strtoull(argv[5], NULL, 10) : 1;
  if (!strcmp(argv[1], "send")) send_stream(amount, more);
  else if (!strcmp(argv[1], "take")) take_stream(amount);
  else if (!strcmp(argv[1], "hold")) many(amount, amount, 1);
  else if (!strcmp(argv[1], "short")) many(amount, more, 0);
  else if (!strcmp(argv[1], "connect")) connect_once(amount);
  else return 2;
  return 0;
}
