// SPDX-License-Identifier: MIT
/* A sensor in plain C: an ordinary TCP client, which knows nothing of midstream but the mark.
 *
 *   sensor HARDWORKER PORT TOS [RATE [MESSAGES]]
 *   sensor 10.83.0.2 12345 104 1000             [mark] of const.toml has port and tos
 *
 * It sends RATE messages per second (1000), MESSAGES of them (0: until it is killed), as imu.toml describes them:
 * a head of 16 bytes, number and time, and six numbers. A connection that is lost is made again, and every message
 * that was not acknowledged whole is sent again.
 *
 *   cc -O2 -o sensor sensor.c -lm               or without a compiler on the machine: python -m ziglang cc …
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define PATIENCE 10	      /* seconds for the peer to take the rest */
#define KEPT 8192	      /* messages that may wait for their acknowledgement: 512 KiB */
#define SEND_BUFFER (1 << 17) /* of the kernel, which doubles it: less than KEPT messages */

struct message {
	uint64_t number; /* from 0; the machine is little-endian, as imu.toml says */
	uint64_t time;	 /* nanoseconds since 1970 */
	double acceleration[3];
	double angular_rate[3];
};

_Static_assert(sizeof(struct message) == 64, "imu.toml describes 64 bytes");
_Static_assert(2 * SEND_BUFFER <= KEPT * sizeof(struct message), "a message is kept while TCP has it");

static struct message kept[KEPT]; /* message n is at n % KEPT */

/* A connection, and what its TCP has taken. */
static struct {
	int sock;
	int ended;	/* our FIN, which counts as a byte */
	uint64_t first; /* the message with which it began */
	uint64_t sent;	/* bytes */
} connection;

static int64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

/* What a real sensor would read from its device. */
static void measure(struct message *message, uint64_t number)
{
	double t = number / 1000.0;

	message->number = number;
	message->time = now(CLOCK_REALTIME);
	message->acceleration[0] = 0.2 * sin(t);
	message->acceleration[1] = 0.2 * cos(t);
	message->acceleration[2] = 9.81;
	message->angular_rate[0] = message->angular_rate[1] = 0;
	message->angular_rate[2] = 0.5 * sin(2 * t);
}

/* Tries until there is a connection. It bears the mark from its first packet on: TOS is set before connect. */
static void open_connection(const struct sockaddr_in *peer, int tos, uint64_t first)
{
	struct timespec pause = { 0, SECOND / 10 };
	int size = SEND_BUFFER, on = 1;

	for (;; nanosleep(&pause, NULL)) {
		int sock = socket(AF_INET, SOCK_STREAM, 0);

		if (sock < 0 || setsockopt(sock, IPPROTO_IP, IP_TOS, &tos, sizeof(tos)) ||
		    setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) ||
		    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))) {
			perror("sensor: socket");
			exit(1);
		}
		if (!connect(sock, (const struct sockaddr *)peer, sizeof(*peer))) {
			connection.sock = sock;
			connection.ended = 0;
			connection.first = first;
			connection.sent = 0;
			return;
		}
		perror("sensor: connect");
		close(sock);
	}
}

/* 0, or -1: the connection is lost, or the peer wants no more on it. */
static int send_message(const struct message *message)
{
	const char *next = (const char *)message, *end = next + sizeof(*message);
	char reply;

	if (!recv(connection.sock, &reply, 1, MSG_DONTWAIT))
		return -1; /* its FIN */
	while (next < end) {
		ssize_t taken = send(connection.sock, next, end - next, MSG_NOSIGNAL);

		if (taken < 0 && errno != EINTR)
			return -1;
		if (taken > 0) {
			next += taken;
			connection.sent += taken;
		}
	}
	return 0;
}

/* Bytes, our FIN among them, that the peer has not acknowledged. Linux knows that of a lost connection, too (tcp(7)). */
static uint64_t unacknowledged(void)
{
	int bytes;

	return ioctl(connection.sock, TIOCOUTQ, &bytes) ? connection.sent + connection.ended : (uint64_t)bytes;
}

/* End the stream in order, if the peer takes the rest. Returns the first message that it has not acknowledged whole. */
static uint64_t close_connection(void)
{
	struct timespec pause = { 0, SECOND / 1000 };
	int64_t deadline = now(CLOCK_MONOTONIC) + PATIENCE * SECOND;
	uint64_t left;
	char reply[256];

	connection.ended = !shutdown(connection.sock, SHUT_WR);
	while (connection.ended && now(CLOCK_MONOTONIC) < deadline) {
		ssize_t got = recv(connection.sock, reply, sizeof(reply), MSG_DONTWAIT);

		if ((!got && !unacknowledged()) || (got < 0 && errno != EAGAIN && errno != EINTR))
			break;
		nanosleep(&pause, NULL);
	}
	left = unacknowledged();
	left -= left && connection.ended;
	close(connection.sock);
	return connection.first + (connection.sent - left) / sizeof(struct message);
}

int main(int argc, char **argv)
{
	struct sockaddr_in peer = { .sin_family = AF_INET };
	double rate = argc > 4 ? atof(argv[4]) : 1000;
	uint64_t count = argc > 5 ? strtoull(argv[5], NULL, 10) : 0;
	uint64_t next = 0, measured = 0, whole = 0, repeated = 0; /* whole: messages that TCP has taken */
	int64_t start;

	if (argc < 4 || argc > 6 || inet_pton(AF_INET, argv[1], &peer.sin_addr) != 1 || rate <= 0) {
		fprintf(stderr, "usage: sensor HARDWORKER PORT TOS [RATE [MESSAGES]]\n");
		return 2;
	}
	peer.sin_port = htons(atoi(argv[2]));
	open_connection(&peer, atoi(argv[3]), 0);
	start = now(CLOCK_MONOTONIC);

	while (!count || next < count) {
		if (next == measured) {
			/* Absolute: message n is due at start + n / rate, whatever happened before. */
			int64_t due = start + (int64_t)(next * (SECOND / rate));
			struct timespec time = { due / SECOND, due % SECOND };

			while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
				;
			measure(&kept[next % KEPT], next);
			measured++;
		}
		if (!send_message(&kept[next % KEPT])) {
			if (++next > whole)
				whole = next;
			if (next != count)
				continue;
		}
		next = close_connection();
		repeated += next < whole ? whole - next : 0;
		if (next != count || !count)
			open_connection(&peer, atoi(argv[3]), next);
	}
	printf("{\"messages\": %llu, \"repeated\": %llu}\n", (unsigned long long)measured,
	       (unsigned long long)repeated);
	return 0;
}
