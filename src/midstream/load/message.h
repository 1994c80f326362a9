// SPDX-License-Identifier: MIT
/* What a message of the load looks like; message.py says the same for NumPy.
 *
 *   u64  sequence, from 0 on each connection
 *   u64  time at which it was sent, CLOCK_REALTIME in nanoseconds
 *   u64  filler[]: a function of connection, sequence and place, the last word cut where the message ends
 *
 * All little-endian. Whoever receives a message can verify every byte of it but the time. A line is an NMEA sentence
 * that holds such a message in hexadecimal digits: $PMID,…*CC, where CC is the exclusive or of what is between.
 */
#pragma once
#include <stdint.h>
#include <string.h>
#include <time.h>

#define HEADER 16
#define LARGEST (1 << 20)
#define CONNECTIONS (1 << 16)
#define PREFIX 4			    /* bytes of a length, big-endian */
#define SENTENCE "$PMID,"
#define OPENING (sizeof(SENTENCE) - 1)
#define AROUND (OPENING + 3)		    /* characters of a line beside the digits */
#define LEAST_LINE (AROUND + 2 * HEADER)
#define LONGEST_FRAME (LARGEST + PREFIX)

enum framing { FIXED, LENGTH, LINE };

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "messages are little-endian, and so must be this machine"
#endif

/* The finaliser of splitmix64: neighbours get words that have nothing in common. */
static inline uint64_t mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
	return x ^ (x >> 31);
}

static inline uint64_t word(uint32_t connection, uint64_t sequence, uint32_t place)
{
	return mix(((uint64_t)connection << 48) + (sequence << 17) + place);
}

static inline uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Fill in everything but the time. `size` is at least HEADER. */
static inline void fill(uint8_t *message, uint32_t size, uint32_t connection, uint64_t sequence)
{
	uint32_t place = 0;

	memcpy(message, &sequence, 8);
	for (uint32_t at = HEADER; at < size; at += 8) {
		uint64_t value = word(connection, sequence, place++);

		memcpy(message + at, &value, size - at < 8 ? size - at : 8);
	}
}

/* Whether a message is that of this connection and sequence. */
static inline int fits(const uint8_t *message, uint32_t size, uint32_t connection, uint64_t sequence)
{
	uint32_t place = 0;

	if (memcmp(message, &sequence, 8))
		return 0;
	for (uint32_t at = HEADER; at < size; at += 8) {
		uint64_t value = word(connection, sequence, place++);

		if (memcmp(message + at, &value, size - at < 8 ? size - at : 8))
			return 0;
	}
	return 1;
}

/* "fixed", "length" or "line"; anything else is -1. */
static inline int framing_of(const char *name)
{
	return !strcmp(name, "fixed") ? FIXED : !strcmp(name, "length") ? LENGTH : !strcmp(name, "line") ? LINE : -1;
}

/* Whether there are messages of this size. That of a line is its characters, without the newline. */
static inline int possible(enum framing framing, uint32_t size)
{
	return size <= LARGEST && (framing == LINE ? size >= LEAST_LINE && (size - AROUND) % 2 == 0 : size >= HEADER);
}

static inline uint8_t check_of(const uint8_t *line, uint32_t digits)
{
	uint8_t check = 0;

	for (uint32_t i = 1; i < OPENING + digits; i++)
		check ^= line[i];
	return check;
}

/* A message in its frame; returns the bytes of that. */
static inline uint32_t compose(uint8_t *frame, enum framing framing, uint32_t size, uint32_t connection,
			       uint64_t sequence, uint64_t time)
{
	static const char digits[] = "0123456789ABCDEF";
	uint8_t *message = frame + (framing == LENGTH ? PREFIX : framing == LINE ? OPENING : 0);
	uint32_t count = framing == LINE ? (size - AROUND) / 2 : size;
	uint8_t check;

	fill(message, count, connection, sequence);
	memcpy(message + 8, &time, 8);
	if (framing == LENGTH) {
		for (int i = 0; i < PREFIX; i++)
			frame[i] = size >> 8 * (PREFIX - 1 - i);
		return PREFIX + size;
	}
	if (framing == FIXED)
		return size;
	memcpy(frame, SENTENCE, OPENING);
	for (uint32_t i = count; i--;) { /* from the end: two digits take the place of one byte */
		uint8_t byte = message[i];

		message[2 * i] = digits[byte >> 4];
		message[2 * i + 1] = digits[byte & 15];
	}
	check = check_of(frame, 2 * count);
	frame[size - 3] = '*';
	frame[size - 2] = digits[check >> 4];
	frame[size - 1] = digits[check & 15];
	frame[size] = '\n';
	return size + 1;
}

static inline int digit_of(uint8_t character)
{
	return character >= '0' && character <= '9'   ? character - '0' :
	       character >= 'A' && character <= 'F' ? character - 'A' + 10 :
							-1;
}

/* The message that a payload carries, and its bytes in `size`; NULL: none. A line's is put into `room`. */
static inline const uint8_t *carried(enum framing framing, const uint8_t *payload, uint32_t *size, uint8_t *room)
{
	uint32_t digits;
	int high, low;

	if (framing != LINE)
		return *size < HEADER ? NULL : payload;
	if (!possible(LINE, *size) || memcmp(payload, SENTENCE, OPENING) || payload[*size - 3] != '*')
		return NULL;
	digits = *size - AROUND;
	if (digit_of(payload[*size - 2]) << 4 != (check_of(payload, digits) & 0xf0) ||
	    digit_of(payload[*size - 1]) != (check_of(payload, digits) & 15))
		return NULL;
	for (uint32_t i = 0; i < digits / 2; i++) {
		high = digit_of(payload[OPENING + 2 * i]);
		low = digit_of(payload[OPENING + 2 * i + 1]);
		if (high < 0 || low < 0)
			return NULL;
		room[i] = high << 4 | low;
	}
	*size = digits / 2;
	return room;
}
