package stackstorm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// datastoreKey is the key that encrypts the datastore's values (st2common/util/crypto.py, AESKey).
type datastoreKey struct{ aes, hmac []byte }

// parseKey reads the file of a key, in keyczar's JSON (crypto.py, read_crypto_key). Its errors hold no part of it.
func parseKey(data []byte) (k datastoreKey, err error) {
	var file struct {
		HMAC struct {
			Key  *string `json:"hmacKeyString"`
			Size *int    `json:"size"`
		} `json:"hmacKey"`
		AES  *string `json:"aesKeyString"`
		Mode string  `json:"mode"`
		Size int     `json:"size"`
	}
	if json.Unmarshal(data, &file) != nil {
		return k, errors.New("it is not the JSON that st2-generate-symmetric-crypto-key writes")
	}
	switch {
	case file.AES == nil || file.HMAC.Key == nil || file.HMAC.Size == nil:
		return k, errors.New("it lacks aesKeyString, or hmacKey with hmacKeyString and size")
	case !strings.EqualFold(file.Mode, "CBC") || file.Size < 128:
		return k, errors.New("mode is not CBC, or size is less than 128")
	}
	var errs [2]error
	k.aes, errs[0] = webSafe(*file.AES)
	k.hmac, errs[1] = webSafe(*file.HMAC.Key)
	if errors.Join(errs[:]...) != nil {
		return k, errors.New("a key in it is not in web-safe base64")
	}
	if !slices.Contains([]int{16, 24, 32}, len(k.aes)) {
		return k, fmt.Errorf("its AES key has %d bits, and not 128, 192 or 256", 8*len(k.aes))
	}
	return k, nil
}

// webSafe is keyczar's Base64WSDecode (crypto.py): without padding, blanks ignored.
func webSafe(text string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.Join(strings.Fields(text), ""), "="))
}

// header stands before each message, and is not looked at (crypto.py, cryptography_symmetric_encrypt).
const header = "00000"

// encrypt is symmetric_encrypt of crypto.py: header, IV, AES-CBC of the padded text and its HMAC-SHA1, in hex.
func (k datastoreKey) encrypt(text string) (string, error) {
	block, err := aes.NewCipher(k.aes)
	if err != nil {
		return "", err
	}
	pad := aes.BlockSize - len(text)%aes.BlockSize
	data := append([]byte(text), bytes.Repeat([]byte{byte(pad)}, pad)...)
	message := append([]byte(header), make([]byte, aes.BlockSize)...)
	iv := message[len(header):]
	_, _ = rand.Read(iv)
	cipher.NewCBCEncrypter(block, slices.Clone(iv)).CryptBlocks(data, data)
	message = append(message, data...)
	return strings.ToUpper(hex.EncodeToString(append(message, k.sign(message)...))), nil
}

// decrypt is symmetric_decrypt of crypto.py.
func (k datastoreKey) decrypt(text string) (string, error) {
	message, err := hex.DecodeString(text)
	if err != nil || len(message) < len(header)+aes.BlockSize+sha1.Size {
		return "", errors.New("it is no encrypted value")
	}
	message, signature := message[:len(message)-sha1.Size], message[len(message)-sha1.Size:]
	if !hmac.Equal(signature, k.sign(message)) {
		return "", errors.New("it was encrypted with another key")
	}
	block, err := aes.NewCipher(k.aes)
	if err != nil {
		return "", err
	}
	iv, data := message[len(header):len(header)+aes.BlockSize], slices.Clone(message[len(header)+aes.BlockSize:])
	if len(data) == 0 || len(data)%aes.BlockSize != 0 {
		return "", errors.New("it is no encrypted value")
	}
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(data, data)
	pad := int(data[len(data)-1])
	if pad == 0 || pad > aes.BlockSize {
		return "", errors.New("it was encrypted with another key")
	}
	return string(data[:len(data)-pad]), nil
}

func (k datastoreKey) sign(message []byte) []byte {
	h := hmac.New(sha1.New, k.hmac)
	h.Write(message)
	return h.Sum(nil)
}
