/* A load generator of one thread: closed loop, open loop, or sessions that are held. See __init__.py for how it is used.
 *
 *   load closed ADDRESS PORT SECONDS CONCURRENCY      as many sessions as the server can take, so many at a time
 *   load open   ADDRESS PORT SECONDS RATE             one session each 1/RATE seconds, whether or not those before have ended
 *   load held   ADDRESS PORT COUNT                    open COUNT sessions one after the other, hold them until a line on stdin
 *
 * A session: connect, send the bytes in $LOAD_SEND (default "hello\n"), read until as many bytes as were sent have come back or,
 * with $LOAD_UNTIL=eof, until the server closes; close. Its latency is counted from the time it was due (open loop: a session that
 * could only be begun late, because this program was late, is late) or begun (closed loop) until its last byte. It has failed if
 * its first piece of answer lacks $LOAD_EXPECT (default: what was sent), or when it takes longer than $LOAD_PATIENCE seconds (10).
 *
 * Prints one JSON object; with $LOAD_RAW, writes every latency there (nanoseconds, 64-bit, in the order of the ends).
 * Sources rotate over 127.0.0.2 to .33, so that ports in TIME_WAIT do not run out (tcp(7); ip(7), IP_BIND_ADDRESS_NO_PORT).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define SOURCES 32

struct session {
    int fd;
    int sent;
    size_t got;
    uint64_t from;
};

static struct sockaddr_in server;
static const char *request = "hello\n", *expected;
static uint64_t patience = 10000000000ull;
static size_t request_size, until_eof;
static int poller;
static struct session *sessions;
static int *unused, unused_count;
static uint64_t *latencies;
static size_t ended, room, failed, begun;
static char *failures[8];
static int failures_count;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void fail(struct session *s, const char *what) {
    failed++;
    if (failures_count < 8) {
        char *text;
        if (asprintf(&text, "%s: %s", what, strerror(errno)) < 0) die("asprintf");
        failures[failures_count++] = text;
    }
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    unused[unused_count++] = s - sessions;
}

static void note(uint64_t latency) {
    if (ended == room) {
        room = room ? room * 2 : 1 << 16;
        latencies = realloc(latencies, room * sizeof *latencies);
        if (!latencies) die("realloc");
    }
    latencies[ended++] = latency;
}

static void begin(uint64_t from) {
    struct session *s = &sessions[unused[--unused_count]];
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + begun % SOURCES)};
    int one = 1;
    begun++;
    s->sent = 0, s->got = 0, s->from = from;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) { fail(s, "socket"); return; }
    setsockopt(s->fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
    if (bind(s->fd, (struct sockaddr *)&source, sizeof source) < 0) { fail(s, "bind"); return; }
    if (connect(s->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) { fail(s, "connect"); return; }
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = s};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &e) < 0) { fail(s, "epoll_ctl"); return; }
}

/* Return 1 when the exchange is complete (the descriptor is still open), -1 when it failed, else 0. */
static int advance(struct session *s) {
    char data[65536];
    if (!s->sent) {
        int number = 0;
        socklen_t size = sizeof number;
        getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &number, &size);
        if (number) { errno = number; fail(s, "connect"); return -1; }
        if (send(s->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) { fail(s, "send"); return -1; }
        s->sent = 1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
        epoll_ctl(poller, EPOLL_CTL_MOD, s->fd, &e);
        return 0;
    }
    for (;;) {
        ssize_t size = recv(s->fd, data, sizeof data, 0);
        if (size < 0 && errno == EAGAIN) return 0;
        if (size < 0) { fail(s, "recv"); return -1; }
        if (size == 0) {
            if (until_eof && s->got) return 1;
            errno = ECONNRESET;
            fail(s, "early end");
            return -1;
        }
        if (!s->got && !memmem(data, size, expected, strlen(expected))) { errno = EBADMSG; fail(s, "answer"); return -1; }
        s->got += size;
        if (!until_eof && s->got >= request_size) return 1;
    }
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void report(uint64_t spent) {
    const char *raw = getenv("LOAD_RAW");
    if (raw) {
        FILE *file = fopen(raw, "wb");
        if (!file || fwrite(latencies, sizeof *latencies, ended, file) != ended || fclose(file)) die(raw);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    qsort(latencies, ended, sizeof *latencies, by_size);
    printf("{\"ended\": %zu, \"failed\": %zu, \"seconds\": %.6f, \"cpu_seconds\": %.6f", ended, failed, spent / 1e9, cpu);
    const double parts[] = {0.5, 0.9, 0.99, 0.999, 1};
    const char *names[] = {"p50", "p90", "p99", "p999", "max"};
    for (int i = 0; i < 5 && ended; i++) {
        size_t at = parts[i] * ended;
        printf(", \"%s\": %.9f", names[i], latencies[at < ended ? at : ended - 1] / 1e9);
    }
    printf(", \"failures\": [");
    for (int i = 0; i < failures_count; i++) printf("%s\"%s\"", i ? ", " : "", failures[i]);
    printf("]}\n");
    fflush(stdout);
}

static void give_up_old(uint64_t at, int capacity) {
    for (int i = 0; i < capacity; i++)
        if (sessions[i].fd >= 0 && at > sessions[i].from + patience) { errno = ETIMEDOUT; fail(&sessions[i], "session"); }
}

/* Closed loop: `concurrency` > 0; open loop: `rate` > 0. */
static void run(double seconds, int concurrency, double rate) {
    int capacity = concurrency ? concurrency : 16384;
    sessions = calloc(capacity, sizeof *sessions);
    unused = calloc(capacity, sizeof *unused);
    for (int i = 0; i < capacity; i++) sessions[i].fd = -1, unused[unused_count++] = capacity - 1 - i;
    struct epoll_event events[EVENTS], alarm = {.events = EPOLLIN, .data.ptr = NULL};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &alarm);
    uint64_t start = now(), stop = start + seconds * 1e9, looked = start, due = start, last = start;
    uint64_t number = 0;
    for (;;) {
        uint64_t t = now();
        /* Each free place once: a begin that fails at once gives its place back. */
        if (t < stop && concurrency)
            for (int count = unused_count; count; count--) begin(now());
        if (rate > 0) {
            while (due <= t && due < stop) {
                if (!unused_count) { failed++, errno = EBUSY; } else begin(due);
                due = start + ++number * 1e9 / rate;
            }
            uint64_t next = due < stop ? due : t + 100000000;
            struct itimerspec at = {.it_value = {next / 1000000000, next % 1000000000}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
        if (t >= stop && (unused_count == capacity || t > stop + patience)) break;
        if (t - looked > 100000000) give_up_old(t, capacity), looked = t;
        int count = epoll_wait(poller, events, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            struct session *s = events[i].data.ptr;
            if (!s) { uint64_t ticks; if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timerfd"); continue; }
            if (s->fd < 0 || advance(s) != 1) continue;
            last = now();
            /* In the closed loop, what ends after the time is not counted: the rate is that of the full load. */
            if (!concurrency || last <= stop) note(last - s->from);
            close(s->fd);
            s->fd = -1;
            unused[unused_count++] = s - sessions;
        }
    }
    report(concurrency ? stop - start : last - start);
}

static void exchange(struct session *s) {
    char data[4096];
    size_t got = 0;
    if (send(s->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) die("send");
    while (got < request_size) {
        ssize_t size = recv(s->fd, data, sizeof data, 0);
        if (size <= 0) die("a held session was lost");
        got += size;
    }
}

static void hold(int count) {
    sessions = calloc(count, sizeof *sessions);
    struct timeval timeout = {patience / 1000000000, patience % 1000000000 / 1000};
    uint64_t start = now();
    for (int i = 0; i < count; i++) {
        struct session *s = &sessions[i];
        uint64_t from = now();
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + i % SOURCES)};
        s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (s->fd < 0) die("socket");
        /* A server that has reached a limit of its own accepts no more: better an error than no end. */
        setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (bind(s->fd, (struct sockaddr *)&source, sizeof source) < 0) die("bind");
        if (connect(s->fd, (struct sockaddr *)&server, sizeof server) < 0) die("connect");
        exchange(s);
        note(now() - from);
    }
    uint64_t spent = now() - start;
    fprintf(stderr, "held\n");
    if (getchar() == EOF && ferror(stdin)) die("stdin");
    for (int i = 0; i < count; i++) exchange(&sessions[i]);
    report(spent);
}

int main(int argc, char **argv) {
    if (argc < 5) { fprintf(stderr, "usage: load closed|open|held ADDRESS PORT SECONDS|COUNT [CONCURRENCY|RATE]\n"); return 2; }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (getenv("LOAD_SEND")) request = getenv("LOAD_SEND");
    request_size = strlen(request);
    expected = getenv("LOAD_EXPECT") ? getenv("LOAD_EXPECT") : request;
    if (getenv("LOAD_PATIENCE")) patience = atof(getenv("LOAD_PATIENCE")) * 1e9;
    until_eof = getenv("LOAD_UNTIL") && !strcmp(getenv("LOAD_UNTIL"), "eof");
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &server.sin_addr) != 1) die("address");
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!strcmp(argv[1], "closed") && argc > 5) run(atof(argv[4]), atoi(argv[5]), 0);
    else if (!strcmp(argv[1], "open") && argc > 5) run(atof(argv[4]), 0, atof(argv[5]));
    else if (!strcmp(argv[1], "held")) hold(atoi(argv[4]));
    else return 2;
    return 0;
}
